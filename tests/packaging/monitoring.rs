//! Alerts, dashboard and the list of metrics speak of what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::metrics::{Metrics, labels, scrape};
use crate::support::{Node, isolated};

const HEAD: &str = "# Metrics

What `/metrics` of each plugin serves: in Prometheus' text format, or as OpenMetrics where a client accepts that. All series are there from the
start, with 0, so that the first failure is seen as an increase. A node has at most 250. No label holds what a pod's author chooses: `registry` is
one of three registries that the operator has named (`store.pins`, `registry.permits`, `registry.hostsDir`, `registry.plainHTTP`, in this order), or
`other`.

[Alerts and a dashboard](operations.md#monitoring) made of these are in the chart. Of `csi_plugin_operations_seconds` only publishes that ended well
have buckets, all else a sum and a count. Publishes have all codes that they end with; `NodeGetVolumeStats` has `OK`, `NotFound` and `Unknown`, and
`NodeUnpublishVolume` `OK` and `Unknown`, which is any other code: the log has it. `GetCapabilities`, `Probe` and the like are not counted.

A unit is the last word of a name: seconds, bytes; without one it is a number of what the name says.

| name | type | labels | meaning |
|---|---|---|---|
";

/// Words of PromQL, labels, and what the dashboard has for Grafana to replace.
const WORDS: [&str; 37] = [
    "__rate_interval",
    "and",
    "bool",
    "by",
    "changes",
    "class",
    "count",
    "driver_name",
    "group_left",
    "grpc_status_code",
    "histogram_quantile",
    "ignoring",
    "increase",
    "instance",
    "job",
    "kind",
    "label_values",
    "le",
    "max",
    "max_over_time",
    "method_name",
    "namespace",
    "node",
    "on",
    "or",
    "rate",
    "reason",
    "registry",
    "result",
    "revision",
    "source",
    "stage",
    "sum",
    "topk",
    "unless",
    "vector",
    "version",
];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> Vec<Value> {
    let rules: Value = serde_yaml_ng::from_str(&text("charts/ocivol/files/rules.yaml")).expect("YAML");
    rules["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .flat_map(|group| group["rules"].as_array().cloned().expect("rules"))
        .collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&text("charts/ocivol/files/dashboard.json")).expect("JSON")
}

/// The values of all `key`s below.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key).and_then(Value::as_str));
            map.values().for_each(|value| all(value, key, found));
        }
        Value::Array(list) => list.iter().for_each(|value| all(value, key, found)),
        _ => {}
    }
}

fn expressions() -> Vec<String> {
    let (rules, dashboard) = (Value::from(rules()), dashboard());
    let mut found = Vec::new();
    all(&rules, "expr", &mut found);
    all(&dashboard, "expr", &mut found);
    found.into_iter().map(str::to_owned).collect()
}

/// The names in an expression: no text in quotes, no number, no duration.
fn names(expression: &str) -> BTreeSet<String> {
    let outside: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words = outside.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    words
        .filter(|word| word.starts_with(|letter: char| letter.is_alphabetic() || letter == '_'))
        .map(str::to_owned)
        .collect()
}

/// What an expression says of labels: name of the metric, label, and each value of which it says something. Those that Grafana puts in
/// its place are left out.
fn values(expression: &str) -> Vec<(String, String, String)> {
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    let (mut found, mut metric) = (Vec::new(), "");
    let pieces: Vec<&str> = expression.split('"').collect();
    for pair in pieces.chunks_exact(2) {
        let [outside, inside] = pair else { continue };
        if let Some((before, _)) = outside.rsplit_once('{') {
            metric = before.rsplit(|letter| !is_name(letter)).next().unwrap_or_default();
        }
        let matcher = outside.rsplit(['{', ',']).next().unwrap_or_default().trim();
        let label = matcher.trim_end_matches(['=', '!', '~']);
        assert!(
            !metric.is_empty() && !label.is_empty() && label != matcher && label.chars().all(is_name),
            "{expression}"
        );
        let each: Vec<&str> =
            if matcher.ends_with('~') { inside.split('|').collect() } else { vec![*inside] };
        if inside.contains('$') {
            continue;
        }
        found.extend(each.into_iter().map(|value| (metric.to_owned(), label.to_owned(), value.to_owned())));
    }
    found
}

/// A plugin that is registered and has its store, and what it serves then.
async fn served() -> (Node, Metrics) {
    let mut node = Node::prepare(&[]);
    node.run_registered().await;
    let metrics = scrape().await;
    (node, metrics)
}

/// Runs promtool with `input`; fails with what it says.
fn promtool(program: &std::ffi::OsStr, arguments: &[&str], input: &str) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool runs");
    child.stdin.take().expect("an input").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("promtool {}: {said}", arguments.join(" "));
    assert!(output.status.success(), "{said}");
}

/// With promtool, where `make metrics` names it; what it looks at is looked at without it as well.
#[test]
fn alerts_and_the_dashboard_speak_of_metrics_that_there_are() {
    isolated(async {
        let (_node, metrics) = served().await;
        let known = metrics.names();
        let expressions = expressions();
        assert!(expressions.len() > 40, "{}", expressions.len());
        for expression in &expressions {
            let unknown: Vec<String> = names(expression)
                .into_iter()
                .filter(|name| !known.contains(&name.as_str()) && !WORDS.contains(&name.as_str()))
                .collect();
            assert!(unknown.is_empty(), "{unknown:?} in {expression}");
        }
        let matched: BTreeSet<_> = expressions.iter().flat_map(|expression| values(expression)).collect();
        assert!(matched.len() >= 20, "{matched:?}");
        for (metric, label, value) in &matched {
            let pair = (label.clone(), value.clone());
            let has = |series: &String| {
                series.split('{').next() == Some(metric.as_str()) && labels(series).contains(&pair)
            };
            assert!(metrics.series.keys().any(has), "no series is {metric}{{{label}=\"{value}\"}}");
        }
        if let Some(program) = std::env::var_os("OCIVOL_PROMTOOL") {
            promtool(&program, &["check", "metrics"], &metrics.text);
            // It looks at expressions of rules; those of the dashboard become some.
            let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
            for (number, expression) in expressions.iter().enumerate() {
                let expression = expression
                    .replace("$__rate_interval", "5m")
                    .replace("$namespace", ".*")
                    .replace("$node", ".*");
                let quoted = serde_json::to_string(&expression).expect("JSON");
                writeln!(rules, "  - record: dashboard:{number}\n    expr: {quoted}").expect("memory");
            }
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), rules).expect("written");
            promtool(&program, &["check", "rules", file.path().to_str().expect("text")], "");
        }
    });
}

#[test]
fn each_alert_says_how_bad_it_is_and_what_to_do() {
    let rules = rules();
    assert_eq!(rules.len(), 12);
    let operations = text("docs/operations.md");
    let anchors: BTreeSet<String> = operations
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"))
        .collect();
    for rule in &rules {
        let name = rule["alert"].as_str().expect("a name");
        assert!(name.starts_with("Ocivol"), "{name}");
        assert!(rule["for"].as_str().is_some_and(|time| !time.is_empty()), "{name} has no `for`");
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("warning" | "critical")), "{name}: {severity:?}");
        assert!(rule["annotations"]["summary"].as_str().is_some_and(|text| text.len() > 20), "{name}");
        let runbook = rule["annotations"]["runbook_url"].as_str().expect("a runbook");
        let anchor = runbook.strip_prefix("docs/operations.md#").unwrap_or_else(|| panic!("{runbook}"));
        assert_eq!(anchor, name.to_lowercase());
        assert!(anchors.contains(anchor), "docs/operations.md has no section {name}");
        let section = operations.split(&format!("### {name}\n")).nth(1).expect("a section");
        let section = section.split("\n#").next().expect("its text");
        assert!(section.contains('`') && section.len() > 200, "what to do about {name}? {section}");
    }
    let tests = text("tests/packaging/rules_test.yaml");
    for rule in &rules {
        let name = rule["alert"].as_str().expect("a name");
        let fires = tests.contains(&format!("    alertname: {name}\n    exp_alerts:"));
        let is_silent = tests.contains(&format!("alertname: {name}}}"));
        assert!(fires && is_silent, "rules_test.yaml does not show when {name} fires, and when not");
    }
}

#[test]
fn the_dashboard_has_four_rows_and_chooses_by_node() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let rows: Vec<&str> = panels
        .iter()
        .filter(|panel| panel["type"] == "row")
        .filter_map(|panel| panel["title"].as_str())
        .collect();
    assert_eq!(rows, ["Fleet", "Pulls", "Registries", "Nodes"]);
    let numbers: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    assert_eq!(numbers.len(), panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            assert!(expression.contains("node=~\"$node\""), "{}: {expression}", panel["title"]);
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variables: Vec<&str> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(variables, ["datasource", "namespace", "node"]);
}

/// What the chart makes of the files: the same, under the names of this installation.
#[test]
fn the_chart_has_them_as_objects() {
    let rendered = text("tests/packaging/rendered/monitoring.yaml");
    let objects: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&rendered)
        .map(|document| serde::Deserialize::deserialize(document).expect("YAML"))
        .collect();
    let of_kind = |kind: &str| {
        objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
    };
    let rule = of_kind("PrometheusRule");
    assert_eq!(rule["spec"]["groups"][0]["rules"], Value::from(rules()));
    for (monitor, workload) in [("ocivol", "DaemonSet"), ("ocivol-controller", "Deployment")] {
        let is_it = |object: &&Value| object["kind"] == "PodMonitor" && object["metadata"]["name"] == monitor;
        let monitor = &objects.iter().find(is_it).expect(monitor)["spec"];
        let pods = &of_kind(workload)["spec"]["template"];
        let selected = monitor["selector"]["matchLabels"].as_object().expect("labels");
        assert!(!selected.is_empty());
        for (label, value) in selected {
            assert_eq!(&pods["metadata"]["labels"][label], value, "{label}");
        }
        let port = &monitor["podMetricsEndpoints"][0]["port"];
        let containers = pods["spec"]["containers"].as_array().expect("containers").iter();
        let ports = containers.filter_map(|container| container["ports"].as_array()).flatten();
        assert!(ports.into_iter().any(|it| it["name"] == *port), "{port}");
    }
    let map =
        objects.iter().find(|object| object["metadata"]["name"] == "ocivol-dashboard").expect("a ConfigMap");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let json: Value = serde_json::from_str(map["data"]["ocivol.json"].as_str().expect("text")).expect("JSON");
    assert_eq!(json, dashboard());
}

/// `OCIVOL_WRITE_DOCS=1` writes it again.
#[test]
fn the_list_of_metrics_is_what_the_plugin_serves() {
    isolated(async {
        let (_node, metrics) = served().await;
        let mut written = HEAD.to_owned();
        let mut help = BTreeMap::new();
        for line in metrics.text.lines() {
            let mut words = line.splitn(4, ' ').skip(1);
            match (line.starts_with("# "), words.next(), words.next(), words.next()) {
                (true, Some("HELP"), Some(name), Some(text)) => {
                    help.insert(name, text);
                }
                (true, Some("TYPE"), Some(name), Some(kind)) => {
                    let labels = labels_of(&metrics, name, kind);
                    let text = help.get(name).unwrap_or_else(|| panic!("{name} says nothing"));
                    writeln!(written, "| `{name}` | {kind} | {labels} | {text} |").expect("memory");
                }
                _ => {}
            }
        }
        let path = file("docs/metrics.md");
        if std::env::var_os("OCIVOL_WRITE_DOCS").is_some() {
            std::fs::write(&path, &written).expect("written");
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = there.lines().zip(written.lines()).find(|(old, new)| old != new);
        assert!(
            there == written,
            "docs/metrics.md is not what is served: OCIVOL_WRITE_DOCS=1 writes it; {differs:?}"
        );
    });
}

/// The labels of a family, with their values where those are few and always the same.
fn labels_of(metrics: &Metrics, name: &str, kind: &str) -> String {
    let series = metrics.series.keys().filter(|series| {
        let own = series.split('{').next().unwrap_or_default();
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        suffixes.iter().any(|suffix| own == format!("{name}{suffix}"))
    });
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (label, value) in series.flat_map(|series| labels(series)) {
        found.entry(label).or_default().insert(value);
    }
    let open = ["driver_name", "registry", "version", "revision", "method_name", "grpc_status_code"];
    let shown = found.iter().filter(|(label, _)| *label != "le").map(|(label, values)| {
        if open.contains(&label.as_str()) {
            return format!("`{label}`");
        }
        format!("`{label}`: {}", values.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    });
    shown.collect::<Vec<_>>().join("; ")
}

#[test]
fn the_reader_of_expressions_sees_names_and_no_text() {
    let expression = "sum by (node) (rate(a_total{x=\"b_total\"}[5m])) > 2 * c";
    assert_eq!(
        names(expression),
        ["a_total", "by", "c", "node", "rate", "sum", "x"].map(str::to_owned).into()
    );
    let expression = "sum(a_total{x=\"b\",node=~\"$node\",y!~\"c|d\"}[5m])) > on (x) e{z=\"f\"}";
    let expected = [("a_total", "x", "b"), ("a_total", "y", "c"), ("a_total", "y", "d"), ("e", "z", "f")];
    let expected =
        expected.map(|(metric, label, value)| (metric.to_owned(), label.to_owned(), value.to_owned()));
    assert_eq!(values(expression), expected);
}
