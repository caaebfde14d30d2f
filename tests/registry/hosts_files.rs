//! What single keys of a `hosts.toml` do to requests: the order, `server`, `override_path`, `dial_timeout`, and `_default`.

use std::time::{Duration, Instant};

use axum::http::Method;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::Seen;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic::Code;

use crate::support::{Node, Scripted, isolated, noise};

/// A name that nobody looks up, because its file says where it is.
const NAME: &str = "registry.corp.example";

/// A mirror that may be asked for everything.
fn mirror(url: &str, more: &str) -> String {
    format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{more}")
}

async fn publishes(node: &Node, pod: &str, reference: &str, content: &[u8]) {
    let volume = node.volume(pod);
    node.publish(&volume, reference, &[]).await.expect("published");
    assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
}

fn gets(seen: &[Seen]) -> Vec<&str> {
    seen.iter().filter(|seen| seen.method == Method::GET).map(|seen| seen.path.as_str()).collect()
}

#[test]
fn mirrors_are_asked_in_the_order_of_the_file() {
    isolated(async {
        let content = noise(1, 100_000);
        let (registry, one, two) = (
            Scripted::with_model(content.clone()).await,
            Scripted::with_model(content.clone()).await,
            Scripted::with_model(content.clone()).await,
        );
        let directory = format!("{}_", registry.host().replace(':', "_"));
        for (first, second) in [(&one, &two), (&two, &one)] {
            let mut node = Node::prepare(&["--plain-http", &registry.host()]);
            let [first_url, second_url] = [first, second].map(|it| format!("http://{}", it.host()));
            let file = format!("{}{}", mirror(&first_url, ""), mirror(&second_url, ""));
            node.write_hosts(&directory, "hosts.toml", &file);
            node.run().await;
            first.forget();
            second.forget();
            publishes(&node, "pod", &registry.reference("m:v1"), &content).await;
            assert!(!gets(&first.requests()).is_empty());
            assert_eq!(second.requests().len(), 0, "it is the second, and the first has everything");
        }
    });
}

#[test]
fn a_mirror_and_a_registry_may_be_below_a_path_of_another() {
    isolated(async {
        let content = noise(1, 100_000);
        let harbor = Scripted::start().await;
        let layer = Layer::model_file("weight", "w", content.clone());
        harbor.pusher("hub/m").model("v1", &[layer]).await.expect("pushed");
        let url = format!("http://{}/v2/hub", harbor.host());
        // As a mirror, and as the registry itself, which has the say.
        let files =
            [mirror(&url, "  override_path = true\n"), format!("server = \"{url}\"\noverride_path = true\n")];
        for (flags, file) in [(&["--authoritative-mirrors", "*"][..], &files[0]), (&[], &files[1])] {
            let mut node = Node::prepare(flags);
            node.write_hosts(NAME, "hosts.toml", file);
            node.run().await;
            harbor.forget();
            publishes(&node, "pod", &format!("{NAME}/m:v1"), &content).await;
            let seen = harbor.requests();
            assert!(!gets(&seen).is_empty());
            assert!(seen.iter().all(|seen| seen.path.starts_with("/v2/hub/m/")), "{seen:?}");
            // As containerd does: whoever is not the host of the reference is told which that is.
            assert!(seen.iter().all(|seen| seen.path.contains(&format!("?ns={NAME}"))), "{seen:?}");
        }
        // Without it there is another /v2/, where nothing is.
        let mut node = Node::prepare(&[]);
        node.write_hosts(NAME, "hosts.toml", &format!("server = \"http://{}/hub\"\n", harbor.host()));
        node.run().await;
        harbor.forget();
        let refused = node.publish(&node.volume("pod"), &format!("{NAME}/m:v1"), &[]).await;
        assert_eq!(refused.expect_err("nothing is there").code(), Code::NotFound);
        assert!(harbor.requests().iter().all(|seen| seen.path.starts_with("/hub/v2/m/")));
    });
}

#[test]
fn the_default_is_for_registries_without_a_directory() {
    isolated(async {
        let content = noise(1, 100_000);
        let (all, own) =
            (Scripted::with_model(content.clone()).await, Scripted::with_model(content.clone()).await);
        let mut node = Node::prepare(&["--authoritative-mirrors", "*"]);
        node.write_hosts("_default", "hosts.toml", &mirror(&format!("http://{}", all.host()), ""));
        node.write_hosts(NAME, "hosts.toml", &mirror(&format!("http://{}", own.host()), ""));
        node.run().await;
        publishes(&node, "of-its-own", &format!("{NAME}/m:v1"), &content).await;
        assert!(!gets(&own.requests()).is_empty() && all.requests().is_empty());
        own.forget();
        publishes(&node, "another", "another.corp.example/m:v1", &content).await;
        let seen = all.requests();
        assert!(gets(&seen).iter().all(|path| path.contains("?ns=another.corp.example")), "{seen:?}");
        assert!(own.requests().is_empty());
    });
}

/// A port whose queue of connections is full: who connects gets no answer, as from a host that a firewall hides.
struct Silent {
    listener: TcpListener,
    queue: Vec<TcpStream>,
}

impl Silent {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("bound");
        let mut queue = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await
        {
            queue.push(connected.expect("connected"));
            assert!(queue.len() < 16, "the queue is never full");
        }
        Self { listener, queue }
    }
}

#[test]
fn a_host_has_so_much_time_to_be_connected_to() {
    isolated(async {
        let silent = Silent::new().await;
        let url = format!("http://{}", silent.listener.local_addr().expect("bound"));
        let mut took = Vec::new();
        for timeout in ["dial_timeout = \"100ms\"\n", "dial_timeout = \"4s\"\n"] {
            let mut node = Node::prepare(&[]);
            node.write_hosts(NAME, "hosts.toml", &format!("server = \"{url}\"\n{timeout}"));
            node.run().await;
            let began = Instant::now();
            let refused = node.publish(&node.volume("pod"), &format!("{NAME}/m:v1"), &[]).await;
            assert_eq!(refused.expect_err("nobody answers").code(), Code::Unavailable);
            took.push(began.elapsed());
        }
        // The waits between the tries are the same, and there are at least two tries.
        assert!(took[1] > took[0] + Duration::from_secs(4), "{took:?}");
        assert!(!silent.queue.is_empty());
    });
}
