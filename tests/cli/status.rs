//! `ocivol status`: what a plugin does, seen from its node.

use axum::body::Body;
use axum::http::Method;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::commands::{ocivol, stdout};
use crate::support::{Node, Scripted, eventually, isolated, noise};

#[test]
fn status_shows_checks_store_and_pulls_and_who_waits_for_them() {
    isolated(async {
        let registry = Scripted::with_model(noise(1, 3 << 20)).await;
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        let output = ocivol(&node, &registry, &["status"]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("no node plugin holds"), "{said}");

        node.run().await;
        let control = node.root.join("control.sock");
        eventually("the control socket", || std::os::unix::net::UnixStream::connect(&control).is_ok()).await;
        let (ready, status) = node.command(&["status"]).await;
        assert!(!ready && status["ready"] == false, "kubelet has not registered it: {status}");
        assert_eq!(status["checks"][0]["name"], "registered");
        assert_eq!(status["checks"][0]["ok"], false);

        node.register().await;
        let published = node.volume("done");
        node.publish(&published, &registry.reference("m:v1"), &[]).await.expect("published");
        let half = Bytes::from(noise(2, 1 << 20));
        registry
            .pusher("slow")
            .model("v1", &[ocivol::demo::push::Layer::model_file("weight", "w", noise(2, 2 << 20))])
            .await
            .expect("pushed");
        registry.script(move |seen| {
            let is_blob = seen.method == Method::GET && seen.path.contains("/slow/blobs/");
            let half = half.clone();
            is_blob.then(|| {
                let first = futures_util::stream::iter([Ok::<_, std::io::Error>(half)]);
                Response::new(Body::from_stream(first.chain(futures_util::stream::pending())))
            })
        });
        let volume = node.volume("waits");
        let reference = registry.reference("slow:v1");
        let request = node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
        let kubelet = node.kubelet.clone();
        let waiting = tokio::spawn(async move { kubelet.publish(request).await });
        let status = loop {
            let (ready, status) = node.command(&["status"]).await;
            assert!(ready, "{status}");
            if status["pulls"][0]["done"].as_u64().is_some_and(|done| done > 0) {
                break status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        let pull = &status["pulls"][0];
        assert_eq!(pull["reference"], reference);
        assert_eq!(pull["pods"][0], format!("{}/{}", volume.pod.namespace, volume.pod.name));
        assert_eq!(
            (&pull["namespace"], &pull["total"]),
            (&volume.pod.namespace.clone().into(), &(2 << 20).into())
        );
        assert_eq!(status["store"]["inline_volumes"], 1);
        assert_eq!(status["store"]["trees"], 1);
        assert!(status["store"]["limit"]["bytes"].as_u64().expect("a number") > 0);
        assert_eq!((&status["node"], &status["uses_api_server"]), (&"node-1".into(), &false.into()));
        let text = stdout(&ocivol(&node, &registry, &["status"]).await);
        for part in [
            "csi.ocivol.dev on node-1: ready",
            "kubelet knows the driver",
            "1 inline",
            &reference,
            "% of 2.00 MiB",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        waiting.abort();
        node.kill();
    });
}
