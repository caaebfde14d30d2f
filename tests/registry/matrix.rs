//! `docs/tested.md` says how each feature of `docs/registries.md` was tried: what its table names is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The rows of the table below the heading: a feature, and the tests that try it.
fn rows() -> Vec<(&'static str, Vec<&'static str>)> {
    let text = include_str!("../../docs/tested.md");
    let (_, section) = text.split_once("\n## Registries, feature by feature\n").expect("the heading");
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows =
        section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    let rows = rows.filter(|(feature, _)| *feature != "feature");
    // What is between backticks.
    rows.map(|(feature, tests)| (feature, tests.split('`').skip(1).step_by(2).collect())).collect()
}

/// The functions of a Rust source that are tests, or a scenario of `make e2e`.
fn functions(path: &Path) -> Vec<String> {
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

fn root() -> PathBuf {
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

#[test]
fn every_feature_has_a_test_that_is_there() {
    let rows = rows();
    assert!(rows.len() >= 80, "only {} rows are read", rows.len());
    let (mut sources, checks) = (BTreeMap::<&str, Vec<String>>::new(), interop());
    assert!(checks.len() >= 8, "{checks:?}");
    let mut lost = Vec::new();
    for (feature, tests) in &rows {
        if tests.is_empty() {
            lost.push(format!("{feature}: no test"));
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
                lost.push(format!("{feature}: {test} is not there"));
            }
        }
    }
    assert!(lost.is_empty(), "docs/tested.md: {lost:#?}");
}
