//! What is counted of a busy node, and that it stays few series, none of which a pod's author can make.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::error;
use serde_json::Value;
use tonic::Code;

use crate::support::metrics::{labels, scrape, scrape_as};
use crate::support::{Node, Scripted, eventually, isolated, noise};

/// Series of a node, at most: of 5,000 nodes they are 1.25 million.
const SERIES: usize = 250;
/// Bytes of each model.
const SIZE: usize = 300_000;
/// Labels that there are. None is a namespace, a pod, a reference or a digest.
const LABELS: [&str; 14] = [
    "check",
    "class",
    "driver_name",
    "grpc_status_code",
    "kind",
    "le",
    "method_name",
    "reason",
    "registry",
    "result",
    "revision",
    "source",
    "stage",
    "version",
];

fn calls(method: &str, code: &str) -> String {
    format!(
        "csi_plugin_operations_seconds_count{{driver_name=\"csi.ocivol.dev\",method_name=\"/csi.v1.Node/{method}\",grpc_status_code=\"{code}\"}}"
    )
}

fn publishes(code: &str) -> String {
    calls("NodePublishVolume", code)
}

#[test]
fn a_busy_node_has_few_series_all_from_the_start_and_each_counts() {
    isolated(async {
        let registry = Scripted::start_with_many_names().await;
        let hosts = registry.hosts(5);
        for (number, name) in ["m", "slow", "bad"].into_iter().enumerate() {
            let layer = Layer::model_file("weight", "w", noise(number as u64, SIZE));
            let pusher = ocivol::demo::push::Pusher::new(&hosts[0], name);
            pusher.model("v1", &[layer]).await.expect("pushed");
        }
        let wrong = noise(99, SIZE);
        let mut refusals = 1;
        registry.script(move |seen| {
            let is_blob = seen.method == Method::GET && seen.path.contains("/blobs/");
            if seen.path.contains("/denied/") {
                return Some(error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED"));
            }
            if seen.path.contains("/slow/") && is_blob && refusals > 0 {
                refusals -= 1;
                return Some(
                    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")], "").into_response(),
                );
            }
            (seen.path.contains("/bad/") && is_blob).then(|| wrong.clone().into_response())
        });
        // More than are told apart, and one that no flag names.
        let mut node = Node::prepare(&["--plain-http", &hosts[..4].join(",")]);
        node.run_registered().await;
        let before = scrape().await;
        let zeros = before.series.iter().filter(|(series, _)| series.contains("_total"));
        let not_zero: Vec<_> =
            zeros.filter(|(series, value)| **value != 0.0 && !series.contains("cpu")).collect();
        assert!(not_zero.is_empty(), "{not_zero:?}");

        let reference = |host: usize, rest: &str| format!("{}/{rest}", hosts[host]);
        let [one, two, three] = ["one", "two", "three"].map(|pod| node.volume(pod));
        node.publish(&one, &reference(0, "m:v1"), &[]).await.expect("pulled");
        node.publish(&two, &reference(0, "m:v1"), &[]).await.expect("it is here");
        node.publish(&three, &reference(3, "slow:v1"), &[]).await.expect("pulled after a refusal");
        for (pod, reference, attributes, code) in [
            ("tag", reference(0, "m:nope"), &[][..], Code::NotFound),
            ("denied", reference(1, "denied/m:v1"), &[], Code::Unauthenticated),
            ("bad", reference(2, "bad:v1"), &[], Code::FailedPrecondition),
            ("tls", reference(4, "m:v1"), &[], Code::Unavailable),
            ("never", reference(0, "m:v2"), &[("pullPolicy", "Never")], Code::NotFound),
            ("attribute", reference(0, "m:v1"), &[("pulPolicy", "Never")], Code::InvalidArgument),
        ] {
            let status = node.publish(&node.volume(pod), &reference, attributes).await.expect_err(pod);
            assert_eq!(status.code(), code, "{pod}: {}", status.message());
        }
        node.kubelet.unpublish(&two).await.expect("unpublished");
        node.kubelet.stats(&one).await.expect("stats");
        // Failures that have no series of their own, and one that has.
        let status = node.kubelet.stats(&two).await.expect_err("it is unpublished");
        assert_eq!(status.code(), Code::NotFound, "{}", status.message());
        let nameless = PodVolume { volume_id: String::new(), ..one.clone() };
        for status in
            [node.kubelet.stats(&nameless).await.err(), node.kubelet.unpublish(&nameless).await.err()]
        {
            assert_eq!(status.expect("it has no ID").code(), Code::InvalidArgument);
        }

        // What is looked up from time to time follows.
        let began = std::time::Instant::now();
        let after = loop {
            let after = scrape().await;
            if after.get("ocivol_volumes{kind=\"inline\"}") == 2.0
                && after.get("ocivol_store_entries{kind=\"tree\"}") == 2.0
            {
                break after;
            }
            assert!(began.elapsed() < crate::support::PATIENCE, "{}", after.text);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        };

        let (first, last): (BTreeSet<_>, BTreeSet<_>) =
            (before.series.keys().collect(), after.series.keys().collect());
        assert_eq!(first, last, "all series are there from the start");
        println!("{} series", last.len());
        assert!(last.len() <= SERIES, "{} series:\n{}", last.len(), after.text);
        let told_apart: BTreeSet<&str> = hosts[..3].iter().map(String::as_str).chain(["other"]).collect();
        for series in last {
            for (name, value) in labels(series) {
                assert!(LABELS.contains(&name.as_str()), "{series}");
                assert!(name != "registry" || told_apart.contains(value.as_str()), "{series}");
            }
        }

        let size = SIZE as f64;
        for (series, value) in [
            ("ocivol_registered", 1.0),
            ("ocivol_ready{check=\"registered\"}", 1.0),
            ("ocivol_ready{check=\"store\"}", 1.0),
            ("ocivol_ready{check=\"propagation\"}", 1.0),
            ("ocivol_pulls_total{result=\"ok\",reason=\"none\"}", 3.0),
            ("ocivol_pulls_total{result=\"cancelled\",reason=\"none\"}", 0.0),
            ("ocivol_pulls_total{result=\"error\",reason=\"not_found\"}", 1.0),
            ("ocivol_pulls_total{result=\"error\",reason=\"denied\"}", 1.0),
            ("ocivol_pulls_total{result=\"error\",reason=\"network\"}", 1.0),
            ("ocivol_pulls_total{result=\"error\",reason=\"verification\"}", 1.0),
            ("ocivol_pulls_total{result=\"error\",reason=\"policy\"}", 1.0),
            ("ocivol_pulls_total{result=\"error\",reason=\"quota\"}", 0.0),
            ("ocivol_pulls_in_flight", 0.0),
            ("ocivol_downloads_waiting", 0.0),
            ("ocivol_pull_oldest_seconds", 0.0),
            ("ocivol_pull_duration_seconds_count", 2.0),
            ("ocivol_pull_size_bytes_sum", 2.0 * size),
            ("ocivol_pull_size_bytes_bucket{le=\"1048576.0\"}", 2.0),
            ("ocivol_pull_bytes_total{source=\"mirror\"}", 0.0),
            ("ocivol_resolves_total{result=\"hit\"}", 1.0),
            ("ocivol_resolves_total{result=\"remote\"}", 3.0),
            ("ocivol_resolves_total{result=\"error\"}", 4.0),
            ("ocivol_grants_total{result=\"held\"}", 1.0),
            ("ocivol_grants_total{result=\"given\"}", 2.0),
            ("ocivol_grants_total{result=\"refused\"}", 1.0),
            ("ocivol_content_total{result=\"fetched\"}", 2.0),
            ("ocivol_content_bytes_total{result=\"fetched\"}", 2.0 * size),
            ("ocivol_content_total{result=\"present\"}", 0.0),
            (&format!("ocivol_requests_total{{registry=\"{}\",class=\"404\"}}", hosts[0]), 1.0),
            (&format!("ocivol_requests_total{{registry=\"{}\",class=\"401\"}}", hosts[1]), 1.0),
            ("ocivol_requests_total{registry=\"other\",class=\"429\"}", 1.0),
            ("ocivol_requests_total{registry=\"other\",class=\"tls\"}", 1.0),
            ("ocivol_mount_duration_seconds_count", 3.0),
            ("ocivol_volumes{kind=\"persistent\"}", 0.0),
            ("ocivol_api_errors_total", 0.0),
            (&publishes("OK"), 3.0),
            (&publishes("NotFound"), 2.0),
            (&publishes("Unauthenticated"), 1.0),
            (&publishes("FailedPrecondition"), 1.0),
            (&publishes("Unavailable"), 1.0),
            (&publishes("InvalidArgument"), 1.0),
            (&calls("NodeUnpublishVolume", "OK"), 1.0),
            (&calls("NodeUnpublishVolume", "Unknown"), 1.0),
            (&calls("NodeGetVolumeStats", "OK"), 1.0),
            (&calls("NodeGetVolumeStats", "NotFound"), 1.0),
            (&calls("NodeGetVolumeStats", "Unknown"), 1.0),
        ] {
            assert_eq!(after.get(series), value, "{series} in\n{}", after.text);
        }
        for stage in ["wait", "network", "write", "verify", "link"] {
            let seconds = after.get(&format!("ocivol_pull_busy_seconds_total{{stage=\"{stage}\"}}"));
            assert!(seconds > 0.0 && seconds < 600.0, "{stage}: {}", after.text);
        }
        assert_eq!(
            after.get("ocivol_pull_busy_seconds_total{stage=\"unpack\"}"),
            0.0,
            "they are no archives"
        );
        assert!(after.get("ocivol_verification_failures_total{kind=\"digest\"}") >= 1.0, "{}", after.text);
        assert!(after.get("ocivol_pull_bytes_total{source=\"registry\"}") >= 2.0 * size, "{}", after.text);
        let limit = after.get("ocivol_store_bytes{kind=\"limit\"}");
        let (used, free) =
            (after.get("ocivol_store_bytes{kind=\"used\"}"), after.get("ocivol_store_bytes{kind=\"free\"}"));
        assert!(used > 0.0 && free > 0.0 && limit < used + free, "{}", after.text);
        assert!(
            !after.series.keys().any(|series| series.contains("Capabilities") || series.contains("Probe"))
        );
    });
}

#[test]
fn metrics_are_in_the_form_that_is_asked_for() {
    isolated(async {
        let node = Node::start(&[]).await;
        node.register().await;
        for (accept, kind) in [
            ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
            ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            ),
        ] {
            let metrics = scrape_as(accept).await;
            assert_eq!(metrics.kind, kind);
            let is_open = kind.starts_with("application");
            assert_eq!(metrics.text.ends_with("# EOF\n"), is_open);
            assert_eq!(metrics.text.contains("# TYPE ocivol_pulls_total counter\n"), !is_open);
            assert_eq!(metrics.get("ocivol_registered"), 1.0);
        }
    });
}

#[test]
fn a_call_is_one_line_of_log_and_a_failure_that_repeats_is_not_repeated() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 50_000)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        node.register().await;
        let (volume, missing) = (node.volume("web-0"), node.volume("web-1"));
        // Another pod that uses the same claim.
        let beside = PodVolume { volume_id: missing.volume_id.clone(), ..node.volume("web-2") };
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        let objects = || -> Vec<Value> {
            node.logged().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        let warnings =
            || -> Vec<Value> { objects().into_iter().filter(|line| line["level"] == "WARN").collect() };
        let before = warnings().len();
        for (volume, expected) in [(&missing, 2), (&missing, 2), (&missing, 2), (&beside, 3)] {
            let status = node.publish(volume, &registry.reference("m:v2"), &[]).await;
            assert_eq!(status.expect_err("no such tag").code(), Code::NotFound);
            eventually("the warnings", || warnings().len() >= before + expected).await;
            assert_eq!(warnings().len(), before + expected, "{:#?}", warnings());
        }
        let messages: Vec<_> = warnings()[before..].iter().map(|line| line["message"].clone()).collect();
        assert_eq!(messages, ["pull failed", "call failed", "call failed"]);
        node.kubelet.stats(&volume).await.expect("stats");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        let calls =
            || -> Vec<Value> { objects().into_iter().filter(|line| !line["method"].is_null()).collect() };
        eventually("the line of the last call", || calls().len() >= 4).await;
        let calls = calls();
        let of = |method: &str| -> Vec<&Value> {
            calls.iter().filter(|line| line["method"] == format!("/csi.v1.Node/{method}")).collect()
        };
        let [published, failed, other] = of("NodePublishVolume")[..] else { panic!("{calls:?}") };
        assert_eq!((&failed["pod"], &other["pod"]), (&"web-1".into(), &"web-2".into()));
        assert_eq!(failed["volume"], other["volume"]);
        for (key, value) in [
            ("level", Value::from("INFO")),
            ("code", "OK".into()),
            ("volume", volume.volume_id.clone().into()),
            ("namespace", volume.pod.namespace.clone().into()),
            ("pod", "web-0".into()),
            ("reference", registry.reference("m:v1").into()),
            ("bytes", 50_000.into()),
            ("fetched", 50_000.into()),
            ("source", "registry".into()),
        ] {
            assert_eq!(published[key], value, "{key} in {published}");
        }
        assert!(published["digest"].as_str().expect("a digest").starts_with("sha256:"), "{published}");
        assert!(published["seconds"].as_f64().expect("a time") > 0.0, "{published}");
        assert_eq!((&failed["level"], &failed["code"]), (&"WARN".into(), &"NotFound".into()), "{failed}");
        assert!(failed["error"].as_str().expect("why").contains("does not exist"), "{failed}");
        let [unpublished] = of("NodeUnpublishVolume")[..] else { panic!("{calls:?}") };
        assert_eq!(
            (&unpublished["pod"], &unpublished["reference"], &unpublished["digest"]),
            (&"web-0".into(), &published["reference"], &published["digest"]),
            "{unpublished}"
        );
        assert_eq!(calls.len(), 4, "stats and capabilities are asked all the time: {calls:?}");
    });
}
