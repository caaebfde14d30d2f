//! `docs/security.md` has a row for every threat, and names the tests that show what is done about it.

use crate::support::named_tests::{functions, lost, root, rows, sources};

/// The threats: T01 to T58.
const THREATS: usize = 58;

/// The numbers at the beginning of a test's name: `t17_t19_t20_hostile_documents…`, `regression_t44_…`.
fn numbers(test: &str) -> Vec<String> {
    let parts = test.split('_').skip_while(|part| *part == "regression");
    let is_number = |part: &&str| {
        part.len() == 3 && part.starts_with('t') && part[1..].bytes().all(|digit| digit.is_ascii_digit())
    };
    // `t40_regression_…` is one as well.
    parts.take_while(is_number).map(str::to_uppercase).collect()
}

#[test]
fn every_threat_has_a_row_and_every_row_its_tests() {
    let rows = rows(include_str!("../../docs/security.md"), "Threats");
    let found: Vec<&str> = rows.iter().map(|row| row.about).collect();
    let expected: Vec<String> = (1..=THREATS).map(|number| format!("T{number:02}")).collect();
    assert_eq!(found, expected);
    let lost = lost(&rows);
    assert!(lost.is_empty(), "docs/security.md: {lost:#?}");
}

#[test]
fn every_test_of_a_threat_is_named_in_its_row() {
    let rows = rows(include_str!("../../docs/security.md"), "Threats");
    let (mut missing, mut tests) = (Vec::new(), 0);
    for source in sources() {
        for test in functions(&root().join(&source)) {
            let name = format!("{source}::{test}");
            for number in numbers(&test) {
                tests += 1;
                let is_named =
                    rows.iter().any(|row| row.about == number && row.tests.contains(&name.as_str()));
                if !is_named {
                    missing.push(format!("{number}: {name}"));
                }
            }
        }
    }
    assert!(tests >= 100, "only {tests} tests of threats are found");
    assert!(missing.is_empty(), "docs/security.md does not name {missing:#?}");
}

#[test]
fn numbers_are_read_from_names() {
    assert_eq!(numbers("t17_t19_hostile"), ["T17", "T19"]);
    assert_eq!(numbers("regression_t44_many"), ["T44"]);
    assert!(numbers("tar_is_read").is_empty() && numbers("the_t01").is_empty());
}
