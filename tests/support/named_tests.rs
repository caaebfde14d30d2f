//! Tables of the documents whose rows name tests, and whether these tests are there.
//!
//! A test is named as `path::function`, which is one of `make test` or a scenario of `make e2e`, or as `make interop: name`, which is what
//! that prints when it is ok.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A row of a table.
pub struct Row<'a> {
    /// Its first cell.
    pub about: &'a str,
    /// What is between backticks in its last cell.
    pub tests: Vec<&'a str>,
}

/// The rows of all tables below the heading `## heading` of `text`.
pub fn rows<'a>(text: &'a str, heading: &str) -> Vec<Row<'a>> {
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let section = section.split("\n## ").next().unwrap_or(section);
    let mut rows = Vec::new();
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        let is_head = lines.peek().is_some_and(|next| next.starts_with("|---"));
        let cells = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")).filter(|_| !is_head);
        if let Some((about, rest)) = cells.and_then(|cells| cells.split_once(" | ")) {
            let tests = rest.rsplit(" | ").next().unwrap_or(rest);
            rows.push(Row { about, tests: tests.split('`').skip(1).step_by(2).collect() });
        }
    }
    rows
}

/// What the rows name and is not there, and rows that name nothing.
pub fn lost(rows: &[Row<'_>]) -> Vec<String> {
    let (mut sources, checks) = (BTreeMap::<&str, Vec<String>>::new(), interop());
    assert!(checks.len() >= 8, "{checks:?}");
    let mut lost = Vec::new();
    for Row { about, tests } in rows {
        if tests.is_empty() {
            lost.push(format!("{about}: no test"));
        }
        for test in tests {
            let is_there = match (test.split_once("::"), test.strip_prefix("make interop: ")) {
                (Some((path, name)), _) => {
                    let known = sources.entry(path).or_insert_with(|| functions(&root().join(path)));
                    known.iter().any(|known| known == name)
                }
                (None, Some(name)) => checks.iter().any(|known| known == name),
                (None, None) => false,
            };
            if !is_there {
                lost.push(format!("{about}: {test} is not there"));
            }
        }
    }
    lost
}

/// The functions of a Rust source that are tests, or scenarios of `make e2e`.
pub fn functions(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let is_scenario = path.starts_with(root().join("tests/e2e"));
    let (mut found, mut is_test) = (Vec::new(), is_scenario);
    for line in text.lines().map(str::trim) {
        let declared = ["fn ", "async fn ", "pub async fn "].iter().find_map(|word| line.strip_prefix(word));
        if let Some(name) = declared.and_then(|rest| rest.split('(').next()).filter(|_| is_test) {
            found.push(name.to_owned());
        }
        // Other attributes may come between.
        is_test = is_scenario
            || line.starts_with("#[test]")
            || line.starts_with("#[tokio::test")
            || (is_test && line.starts_with("#["));
    }
    found
}

/// Every Rust source below `src` and `tests`, as the tables name it.
pub fn sources() -> Vec<String> {
    let (mut found, mut directories) = (Vec::new(), vec![root().join("src"), root().join("tests")]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root()).expect("below").display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// The checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The names that the scripts of `make interop` print when they are ok.
fn interop() -> Vec<String> {
    let scripts =
        ["mirrors.sh", "providers.sh", "throttle.sh"].map(|name| root().join("tests/interop").join(name));
    let text = scripts.map(|path| std::fs::read_to_string(path).expect("a script")).concat();
    let names = text.lines().filter_map(|line| line.strip_prefix("check ")?.split(' ').next());
    names.map(str::to_owned).collect()
}
