//! The versions that README and docs/tested.md name are those that `make e2e` runs, and the file systems those of the tests.

use std::collections::BTreeMap;

use crate::support::named_tests::root;

const README: &str = include_str!("../../README.md");
const TESTED: &str = include_str!("../../docs/tested.md");
const MAKEFILE: &str = include_str!("../../Makefile");
const MODULES: &str = include_str!("../e2e/kubernetes/go.mod");
const DISKS: &str = include_str!("../support/disk.rs");
const CHART: &str = include_str!("../../charts/ocivol/Chart.yaml");

/// What the Makefile sets `name` to.
fn made(name: &str) -> &'static str {
    let line = MAKEFILE.lines().find_map(|line| line.strip_prefix(&format!("{name} := ")));
    line.unwrap_or_else(|| panic!("the Makefile sets no {name}"))
}

/// The cells of the table below `## heading`, by the first one of their row.
fn table(text: &'static str, heading: &str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect(heading);
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.filter_map(|row| row.split_once(" | "))
        .map(|(name, rest)| (name, rest.split(" | ").collect()))
        .collect()
}

#[test]
fn what_make_e2e_runs_is_what_the_documents_say() {
    let kubernetes = MODULES.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    let kubernetes = kubernetes.expect("Kubernetes").split(' ').next().expect("a version");
    let rendered: Vec<&str> = made("KUBERNETES").split(' ').collect();
    let short = |version: &'static str| version.rsplit_once('.').expect("three numbers").0;
    let (oldest, newest) = (short(rendered[0]), short(rendered[rendered.len() - 1]));
    assert!(CHART.contains(&format!("kubeVersion: \">={}-0\"", rendered[0])), "{CHART}");

    let runs = table(README, "What it runs on");
    let expected = [
        ("Kubernetes", oldest.to_owned(), kubernetes.to_owned(), format!("{oldest} to {newest}")),
        ("containerd", String::new(), made("NODE_CONTAINERD").to_owned(), String::new()),
        ("runc", "1.2".to_owned(), made("NODE_RUNC").to_owned(), String::new()),
    ];
    for (name, needed, run, more) in expected {
        let row = runs.get(name).unwrap_or_else(|| panic!("README has no row for {name}"));
        assert!(row[0].starts_with(&needed), "{name} needs {needed}: {row:?}");
        assert_eq!(row[1], run, "{name}, as make e2e runs it");
        assert!(row[2].contains(&more), "{name}: {more:?} is missing in {row:?}");
    }
    // `enum FileSystem` names what the store is tried on.
    let (_, kinds) = DISKS.split_once("pub enum FileSystem {").expect("the kinds");
    let kinds = kinds.split('}').next().expect("an end");
    let kinds: Vec<String> =
        kinds.split(',').map(|kind| kind.trim().to_lowercase()).filter(|kind| !kind.is_empty()).collect();
    let row = &runs["file system of the store"];
    assert_eq!(row[1], "ext4");
    let named: Vec<String> =
        row[2].split(", ").map(|name| name.split(' ').next().unwrap_or(name).to_lowercase()).collect();
    for kind in &kinds {
        assert!(kind == row[1] || named.contains(kind), "{kind} is missing in {row:?}");
    }
    assert!(kinds.len() >= 3, "{kinds:?}");

    let tested = table(TESTED, "The node");
    let of = |name: &str| {
        let row = tested.iter().find(|(known, _)| known.starts_with(name));
        row.unwrap_or_else(|| panic!("docs/tested.md has no row for {name}")).1[0]
    };
    assert_eq!(of("Kubernetes"), kubernetes);
    assert_eq!(of("containerd"), made("NODE_CONTAINERD"));
    assert_eq!(of("runc"), made("NODE_RUNC"));
    let runtime = format!("runc {} under containerd {}", made("NODE_RUNC"), made("NODE_CONTAINERD"));
    assert!(table(TESTED, "Runtimes").contains_key(runtime.as_str()), "no row for {runtime}");
}

#[test]
fn every_scenario_has_a_row() {
    let scenarios = include_str!("../e2e/src/scenarios.rs");
    let names = scenarios.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once("::"));
    let names: Vec<&str> = names.map(|(_, name)| name).filter(|name| name.contains('_')).collect();
    assert!(names.len() >= 24, "{names:?}");
    let (_, table) = TESTED.split_once("\n## Scenarios\n").expect("the heading");
    let table = table.split("\n## ").next().unwrap_or(table);
    let missing: Vec<_> = names.iter().filter(|name| !table.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/tested.md does not say what these show: {missing:?}");
}

#[test]
fn the_fixtures_are_of_ten_tools() {
    let fixtures = std::fs::read_dir(root().join("tests/fixtures")).expect("fixtures").flatten();
    let names =
        fixtures.filter(|entry| entry.path().join("oci-layout").exists()).map(|entry| entry.file_name());
    assert_eq!(names.count(), 10);
    assert!(README.contains("ten other projects' tools"));
}
