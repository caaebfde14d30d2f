//! `docs/dashboard.svg` is a picture of the dashboard that the chart has. `make dashboard` draws it anew.

use serde_json::Value;

const DASHBOARD: &str = include_str!("../../charts/ocivol/files/dashboard.json");
const PICTURE: &str = include_str!("../../docs/dashboard.svg");

/// What the picture keeps of each panel: the expressions that were asked for it, each in a line, as text of XML.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let of_panel = |panel: &Value| {
        let targets = panel["targets"].as_array()?;
        let asked: Vec<&str> = targets.iter().filter_map(|target| target["expr"].as_str()).collect();
        Some(asked.join("\n").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
    };
    panels.filter_map(of_panel).collect()
}

#[test]
fn the_picture_is_of_the_panels_that_there_are() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let drawn = PICTURE.split("<desc>").skip(1).map(|rest| rest.split("</desc>").next().unwrap_or(rest));
    let (drawn, known): (Vec<&str>, _) = (drawn.collect(), expressions(&dashboard));
    assert!(known.len() > 20, "{}", known.len());
    assert_eq!(drawn, known, "the dashboard was changed: make dashboard draws it");
}
