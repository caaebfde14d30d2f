//! Which nodes are meant, by their labels: a LabelSelector of Kubernetes.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Labels of a node.
pub(in crate::prepull) type Labels = BTreeMap<String, String>;

/// All that is said has to be so. Without anything every node is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::prepull) struct Selector {
    match_labels: Labels,
    match_expressions: Vec<Requirement>,
}

/// What has to be so of one label.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

impl Selector {
    /// Whether a node with these labels is meant. Source: `labels.Requirement.Matches` of Kubernetes' apimachinery.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            // Also where there is no such label.
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            // Nothing is pulled for what is not understood.
            Operator::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn nodes_are_chosen_as_kubernetes_chooses_them() {
        let labels: Labels =
            [("gpu", "a100"), ("zone", "b")].map(|(key, value)| (key.into(), value.into())).into();
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let table: [(Value, bool); 15] = [
            (json!({}), true),
            (json!({"matchLabels": {"gpu": "a100"}}), true),
            (json!({"matchLabels": {"gpu": "a100", "zone": "c"}}), false),
            (json!({"matchLabels": {"other": ""}}), false),
            (expression("gpu", "In", &["h100", "a100"]), true),
            (expression("gpu", "In", &["h100"]), false),
            (expression("other", "In", &[""]), false),
            (expression("gpu", "NotIn", &["h100"]), true),
            (expression("gpu", "NotIn", &["a100"]), false),
            (expression("other", "NotIn", &["x"]), true),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "other", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}), false),
            (json!({"matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}), true),
            (expression("gpu", "Gt", &["1"]), false),
        ];
        for (selector, expected) in table {
            let read: Selector = serde_json::from_value(selector.clone()).expect("a selector");
            assert_eq!(read.matches(&labels), expected, "{selector}");
        }
    }
}
