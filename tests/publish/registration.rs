//! Registration with kubelet, and what happens around it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ocivol::csi::pluginregistration::RegistrationStatus;
use ocivol::csi::pluginregistration::registration_client::RegistrationClient;
use ocivol::csi::transport;

use crate::support::node::{DRIVER, mount_at};
use crate::support::{Node, PATIENCE, Scripted, eventually, isolated};

/// Registers again, by itself.
async fn registers_again(node: &Node, what: &str) {
    let began = Instant::now();
    loop {
        if node.registration().exists() && node.kubelet.register(&node.registration()).await.is_ok() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "no registration after {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn kubelet_registers_restarts_and_loses_the_socket() {
    isolated(async {
        let node = Node::start(&[]).await;
        let info = node.register().await;
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", DRIVER));
        assert_eq!(info.supported_versions, ["1.0.0"]);
        let kubelets_path = node.kubelet.directory.join("plugins").join(DRIVER).join("csi.sock");
        assert_eq!(info.endpoint, kubelets_path.to_str().expect("text"));
        let mode = std::fs::metadata(node.registration()).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        // A restarted kubelet walks the directory and finds the socket that is there.
        node.register().await;

        std::fs::remove_file(node.registration()).expect("removed");
        registers_again(&node, "the socket was deleted").await;

        std::fs::remove_file(node.registration()).expect("removed");
        let other = node.kubelet.directory.join("other");
        std::fs::write(&other, "not a socket").expect("written");
        std::fs::rename(&other, node.registration()).expect("put in the way");
        eventually("it is noticed", || node.logged().contains("cannot make the registration socket")).await;
        std::fs::remove_file(node.registration()).expect("removed");
        registers_again(&node, "something else was in the way").await;
    });
}

#[test]
fn a_directory_that_was_made_again_is_found_by_the_next_container() {
    isolated(async {
        // A process of the host sees the new directory itself.
        let host = Node::on_host(&[]);
        for mut node in [host, Node::prepare(&[])] {
            node.run().await;
            // The plugin may make its socket again while the directory is emptied.
            let directory = node.registry_dir.clone();
            eventually("the directory goes", || std::fs::remove_dir_all(&directory).is_ok()).await;
            std::fs::create_dir(&node.registry_dir).expect("made again");
            if node.registry_dir.starts_with("/var/lib/kubelet") {
                assert!(!node.wait().await, "it ends, and the container is started again");
                assert!(node.logged().contains("was removed on the node"), "{}", node.logged());
                node.run().await;
            }
            registers_again(&node, "the directory was made again").await;
        }
    });
}

#[test]
fn a_foreign_socket_under_our_name_is_replaced() {
    isolated(async {
        let node = Node::start(&[]).await;
        let other = node.kubelet.directory.join("other.sock");
        let _foreign = std::os::unix::net::UnixListener::bind(&other).expect("bound");
        std::fs::rename(&other, node.registration()).expect("put in its place");
        registers_again(&node, "another process took the name").await;
    });
}

#[test]
fn health_follows_registration_and_the_store() {
    isolated(async {
        let node = Node::start(&[]).await;
        let get = async |path: &str| {
            let port = if path == "/metrics" { 9809 } else { 9808 };
            let answer = reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.expect("an answer");
            (answer.status().as_u16(), answer.text().await.expect("a text"))
        };
        assert_eq!(get("/healthz").await, (200, "ok\n".into()));
        assert_eq!(get("/readyz").await.0, 503);

        node.register().await;
        assert_eq!(get("/readyz").await, (200, "ok\n".into()));

        let channel = transport::connect(&node.registration()).await.expect("connected");
        let refusal = RegistrationStatus { plugin_registered: false, error: "name is taken".into() };
        RegistrationClient::new(channel).notify_registration_status(refusal).await.expect("told");
        let (status, text) = get("/readyz").await;
        assert!(status == 503 && text.contains("name is taken"), "{status} {text}");
        assert_eq!(get("/healthz").await.0, 200, "a refusal is no reason to restart");

        node.register().await;
        let (_, metrics) = get("/metrics").await;
        assert!(metrics.contains("\nocivol_registered 1.0\n"), "{metrics}");
        assert!(metrics.contains("ocivol_build_info{version="), "{metrics}");
    });
}

#[test]
fn sigterm_takes_the_registration_away_first_and_lets_calls_end() {
    isolated(async {
        let registry = Scripted::with_model("content").await;
        // The blob never comes: the publish waits until the plugin ends.
        registry.script(|seen| {
            seen.path.contains("/blobs/").then(|| {
                let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
                axum::response::Response::new(axum::body::Body::from_stream(never))
            })
        });
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let reference = registry.reference("m:v1");
        let (kubelet, request) =
            (node.kubelet.clone(), node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]));
        let waiting = tokio::spawn(async move { kubelet.publish(request).await });
        eventually("the blob is asked for", || registry.count(&axum::http::Method::GET, "/blobs/") > 0).await;
        let began = Instant::now();
        node.signal(Signal::SIGTERM);
        let registration = node.registration();
        eventually("the registration goes", || !registration.exists()).await;
        let status = waiting.await.expect("no panic").expect_err("the plugin ends");
        assert_eq!(status.code(), tonic::Code::Unavailable, "{}", status.message());
        node.stop().await;
        assert!(began.elapsed() < Duration::from_secs(30), "a pod has 30 seconds to end");
        assert!(!node.socket.exists() && mount_at(&volume.target).is_none());
    });
}
