//! What a plugin in the DaemonSet's container says of itself on `/metrics`.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use reqwest::header;

use super::container::rendered;

/// Metrics as they were served.
pub struct Metrics {
    /// The content type.
    pub kind: String,
    /// All of it.
    pub text: String,
    /// Values by series: name and labels, as they stand there.
    pub series: BTreeMap<String, f64>,
}

/// Where the rendered DaemonSet has them.
fn url() -> String {
    let pod = rendered::<DaemonSet>("DaemonSet").spec.expect("a spec").template.spec.expect("a pod");
    let ports = pod.containers[0].ports.clone().expect("ports");
    let named = |name: &str| ports.iter().find(|port| port.name.as_deref() == Some(name));
    let port = named("metrics").or(named("healthz")).expect("a port").container_port;
    format!("http://127.0.0.1:{port}/metrics")
}

/// Asks for metrics, in the form that `accept` names.
pub async fn scrape_as(accept: &str) -> Metrics {
    let request = reqwest::Client::new().get(url()).header(header::ACCEPT, accept);
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    let kind = answer.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
    let text = answer.text().await.expect("a text");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let of_line = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        (series.to_owned(), value.parse().unwrap_or_else(|error| panic!("{line}: {error}")))
    };
    let series = lines.map(of_line).collect();
    Metrics { kind, series, text }
}

/// Asks for metrics as a person does.
pub async fn scrape() -> Metrics {
    scrape_as("*/*").await
}

impl Metrics {
    /// The value of a series.
    pub fn get(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("there is no {series} in\n{}", self.text))
    }

    /// The names of all series, without labels.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.series.keys().map(|series| series.split('{').next().unwrap_or_default()).collect();
        names.dedup();
        names
    }
}

/// Names and values of the labels of a series.
pub fn labels(series: &str) -> Vec<(String, String)> {
    let Some((_, labels)) = series.split_once('{') else { return Vec::new() };
    let labels = labels.trim_end_matches('}').split("\",");
    let pairs = labels.filter_map(|label| label.split_once("=\""));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}
