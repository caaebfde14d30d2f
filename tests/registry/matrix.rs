//! `docs/tested.md` says how each feature of `docs/registries.md` was tried: what its table names is there.

use crate::support::named_tests::{lost, rows};

#[test]
fn every_feature_has_a_test_that_is_there() {
    let rows = rows(include_str!("../../docs/tested.md"), "Registries, feature by feature");
    assert!(rows.len() >= 80, "only {} rows are read", rows.len());
    let lost = lost(&rows);
    assert!(lost.is_empty(), "docs/tested.md: {lost:#?}");
}
