//! `docs/speed.svg` is drawn from the tables of `docs/benchmarks.md`, which `make bench` prints, and the README says no other numbers. `make docs`
//! draws it anew.

use std::fmt::Write as _;

use crate::support::named_tests::root;

const README: &str = include_str!("../../README.md");
const TABLES: &str = include_str!("../../docs/benchmarks.md");

/// The headings in `docs/benchmarks.md` whose tables are drawn, and the lines of the README about them: what each begins with, and the
/// tools that it names beside ocivol.
const SHOWN: [(&str, &str, &[&str]); 3] = [
    (
        "A model",
        "- **A model of 2.1 GB**",
        &["curl, 4 at a time, nothing verified", "containerd 2.4.2", "skopeo copy to dir:"],
    ),
    (
        "An image, gzip",
        "- **An image of 489 MB, gzip**",
        &["containerd 2.4.2, the same with igzip", "containerd 2.4.2", "podman pull and mount"],
    ),
    (
        "An image of which all but one layer is there",
        "- **An image of which all but one layer is there**",
        &["containerd 2.4.2"],
    ),
];

/// A row of a table: a tool, its seconds, and how many times as long as ocivol it needed.
struct Row {
    tool: &'static str,
    seconds: f64,
    times: &'static str,
}

fn rows(heading: &str) -> Vec<Row> {
    let (_, section) =
        TABLES.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
        let seconds = cells.get(1)?.parse().ok()?;
        Some(Row { tool: cells[0], seconds, times: cells.get(2)?.strip_suffix('x')? })
    });
    let rows: Vec<Row> = rows.collect();
    assert_eq!(rows.first().map(|row| row.tool), Some("ocivol pull"), "{heading}");
    rows
}

const ROW: usize = 22;
const LEFT: usize = 330;
const WIDTH: usize = 860;

/// The bars of all tables that are shown, each as long as its seconds.
fn drawn() -> String {
    let tables: Vec<(&str, Vec<Row>)> = SHOWN.iter().map(|(heading, ..)| (*heading, rows(heading))).collect();
    let longest = tables.iter().flat_map(|(_, rows)| rows).map(|row| row.seconds).fold(0.0, f64::max);
    let lines: usize = tables.iter().map(|(_, rows)| rows.len() + 2).sum();
    let height = lines * ROW + ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title>Seconds from a registry to files, by tool; less is better</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"6\" fill=\"#ffffff\"/>\n"
    );
    let mut y = ROW;
    for (heading, rows) in &tables {
        y += ROW;
        writeln!(
            svg,
            "<text x=\"16\" y=\"{}\" font-weight=\"600\" fill=\"#1f2328\">{heading}, seconds</text>",
            y - 8
        )
        .expect("memory");
        for row in rows {
            let length = ((WIDTH - LEFT - 70) as f64 * row.seconds / longest).max(1.0);
            let (color, end) =
                (if row.tool.starts_with("ocivol") { "#0969da" } else { "#afb8c1" }, LEFT as f64 + length);
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#1f2328\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#59636e\">{:.2}</text>",
                LEFT - 10,
                y + 14,
                row.tool,
                y + 3,
                ROW - 6,
                end + 6.0,
                y + 14,
                row.seconds
            )
            .expect("memory");
            y += ROW;
        }
        y += ROW;
    }
    svg.push_str("</svg>\n");
    svg
}

#[test]
fn the_picture_is_drawn_from_the_tables() {
    let path = root().join("docs/speed.svg");
    let svg = drawn();
    if std::env::var_os("OCIVOL_WRITE_DOCS").is_some() {
        std::fs::write(&path, &svg).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == svg, "docs/speed.svg is not what docs/benchmarks.md says: make docs draws it");
}

#[test]
fn the_readme_says_the_numbers_of_the_tables() {
    for (heading, beginning, tools) in SHOWN {
        let line = README.lines().find(|line| line.starts_with(beginning));
        let line = line.unwrap_or_else(|| panic!("the README has no line {beginning:?}"));
        let rows = rows(heading);
        let seconds = format!(" {:.2} s", rows[0].seconds);
        assert!(line.contains(&seconds), "{line}: it is{seconds}");
        for tool in tools {
            let row = rows.iter().find(|row| row.tool == *tool).unwrap_or_else(|| panic!("no {tool}"));
            let times = format!("{} times", row.times);
            assert!(line.contains(&times), "{line}: {tool} needs {times}");
        }
        assert_eq!(line.matches(" times").count(), tools.len(), "{line}");
    }
}

#[test]
fn the_readme_says_the_numbers_of_a_slow_disk() {
    let line = README.lines().find(|line| line.contains("on a disk of 125 MB/s")).expect("a line");
    let (_, section) = TABLES.split_once("\n## On a disk of a cloud\n").expect("a section");
    let (_, table) = section.split_once("\nThe same bytes as an image of one layer").expect("a table");
    let until_synced = |tool: &str| {
        let row =
            table.lines().find_map(|line| line.strip_prefix("| ")?.strip_prefix(tool)?.strip_prefix(" | "));
        let cells: Vec<&str> = row.unwrap_or_else(|| panic!("no {tool}")).split(" | ").collect();
        (cells[2], cells[3])
    };
    let (seconds, _) = until_synced("ocivol pull");
    assert!(line.contains(&format!(" {seconds} s")), "{line}: it is {seconds} s");
    let (_, times) = until_synced("containerd 2.4.2");
    assert!(line.contains(&format!(" {} times", times.trim_end_matches('x'))), "{line}: it needs {times}");
}
