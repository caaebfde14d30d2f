//! What registries and networks fail to do, and what a pull makes of it.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::{Seen, error, parse_range};
use tonic::Code;

use crate::support::answers::{broken, first, is_blob, is_manifest, setup, setup_with};
use crate::support::{Node, Scripted, eventually, isolated, noise};

const GET: Method = Method::GET;

#[test]
fn what_passes_is_tried_again() {
    isolated(async {
        let content = noise(1, 3_000_000);
        type Answer = Box<dyn Fn(&Seen) -> Response + Send>;
        type Row<'a> = (&'a str, fn(&Seen) -> bool, Answer);
        let part = content[..1_000_000].to_vec();
        let (short, stalled) = (part.clone(), part);
        let table: Vec<Row<'_>> = vec![
            ("500", is_blob, Box::new(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"))),
            ("503 manifest", is_manifest, Box::new(|_| error(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN"))),
            (
                "429",
                is_blob,
                Box::new(|_| {
                    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], "slow down").into_response()
                }),
            ),
            ("short body", is_blob, Box::new(move |_| broken(&short, 3_000_000, false))),
            ("stall", is_blob, Box::new(move |_| broken(&stalled, 3_000_000, true))),
        ];
        for (name, fits, answer) in table {
            let stall = if name == "stall" { "1" } else { "30" };
            let (registry, node, reference) = setup_with(&content, &["--stall-timeout", stall]).await;
            registry.script(first(2, fits, answer));
            let volume = node.volume("pod");
            node.publish(&volume, &reference, &[]).await.unwrap_or_else(|status| panic!("{name}: {status}"));
            assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content, "{name}");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn a_broken_body_is_resumed_where_it_broke() {
    isolated(async {
        let content = noise(2, 3_000_000);
        let (registry, node, reference) = setup(&content).await;
        let part = content[..1_000_000].to_vec();
        registry.script(first(1, is_blob, move |_| broken(&part, 3_000_000, false)));
        let volume = node.volume("pod");
        node.publish(&volume, &reference, &[]).await.expect("published");
        let ranges: Vec<_> = registry
            .requests()
            .iter()
            .filter(|seen| is_blob(seen))
            .map(|seen| seen.headers.get(header::RANGE).map(|range| range.to_str().expect("text").to_owned()))
            .collect();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        assert_eq!(ranges[0], None);
        let resumed = ranges[1].as_deref().and_then(|range| parse_range(range, 3_000_000)).expect("a range");
        assert!(resumed.start > 0 && resumed.start <= 1_000_000 && resumed.end == 3_000_000, "{resumed:?}");
        assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn a_slow_connection_gets_help_from_others() {
    isolated(async {
        const SIZE: usize = 160 << 20;
        let content = Bytes::from(noise(9, SIZE));
        let registry = Scripted::start().await;
        let layer = Layer::model_file("weight", "w", content.clone());
        registry.pusher("m").model("v1", &[layer]).await.expect("pushed");
        // Every connection gets 20 MB/s, as from an object store far away.
        let sent = content.clone();
        registry.script(move |seen| {
            if !is_blob(seen) || seen.method != GET {
                return None;
            }
            let range =
                seen.headers.get(header::RANGE).and_then(|value| parse_range(value.to_str().ok()?, SIZE));
            let part = range.clone().unwrap_or(0..SIZE);
            let (rest, length) = (sent.slice(part.clone()), part.len());
            let body = futures_util::stream::unfold(rest, |mut rest| async move {
                if rest.is_empty() {
                    return None;
                }
                // The rate is what is tested here, so time has to pass.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let next = rest.split_to(rest.len().min(1 << 20));
                Some((Ok::<_, std::io::Error>(next), rest))
            });
            let length = [(header::CONTENT_LENGTH, length)];
            Some(match range {
                Some(range) => {
                    let value = format!("bytes {}-{}/{SIZE}", range.start, range.end - 1);
                    let headers = [(header::CONTENT_RANGE, value)];
                    (StatusCode::PARTIAL_CONTENT, length, headers, Body::from_stream(body)).into_response()
                }
                None => (length, Body::from_stream(body)).into_response(),
            })
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        assert!(std::fs::read(volume.target.join("w")).expect("read") == content, "parts were mixed up");
        let requests = registry.count(&GET, "/blobs/");
        assert!((2..=12).contains(&requests), "{requests} requests");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_download_that_nobody_goes_on_with_makes_place() {
    isolated(async {
        let registry = Scripted::start().await;
        for (name, seed) in [("one", 21), ("two", 22), ("huge", 23)] {
            let size = if name == "huge" { 70 << 20 } else { 40 << 20 };
            let layer = Layer::model_file("weight", "w", noise(seed, size));
            registry.pusher(name).model("v1", &[layer]).await.expect("pushed");
        }
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        node.limit_store("64m");
        node.run().await;
        // The first model comes to three quarters, and its pod goes.
        let part = noise(21, 40 << 20)[..30 << 20].to_vec();
        let mut began = false;
        registry.script(move |seen| {
            (is_blob(seen) && seen.path.contains("/one/")).then(|| {
                if std::mem::replace(&mut began, true) {
                    return StatusCode::NOT_FOUND.into_response();
                }
                broken(&part, 40 << 20, false)
            })
        });
        let first = node.volume("first");
        node.publish(&first, &registry.reference("one:v1"), &[]).await.expect_err("gone");
        let used = || {
            let found = rustix::fs::statvfs(&node.root).expect("a disk");
            (found.f_blocks - found.f_bfree) * found.f_frsize
        };
        assert!(used() > 25 << 20, "what came is kept");
        let huge = node.publish(&node.volume("huge"), &registry.reference("huge:v1"), &[]).await;
        assert_eq!(huge.expect_err("never fits").code(), Code::ResourceExhausted);
        assert!(used() > 25 << 20, "and would not help");
        let second = node.volume("second");
        node.publish(&second, &registry.reference("two:v1"), &[]).await.expect("published");
        assert!(std::fs::read(second.target.join("w")).expect("read") == noise(22, 40 << 20));
        assert!(used() < 45 << 20, "the other is gone");
    });
}

#[test]
fn one_slow_registry_does_not_hold_up_another() {
    isolated(async {
        let content = noise(7, 400_000);
        let (slow, node, _) = setup(&content).await;
        let fast = Scripted::start().await;
        fast.pusher("m")
            .model("v1", &[Layer::model_file("weight", "w", content.clone())])
            .await
            .expect("pushed");
        let hosts = format!("{},{}", slow.host(), fast.host());
        let mut node = node;
        node.stop().await;
        drop(node);
        let node = Node::start(&["--plain-http", &hosts, "--stall-timeout", "300"]).await;
        slow.script(|seen| is_blob(seen).then(|| broken(b"x", 400_000, true)));
        let (kubelet, stuck) = (node.kubelet.clone(), node.volume("stuck"));
        let slow_reference = slow.reference("m:v1");
        let request = kubelet.publish_request(&stuck, &[("reference", &slow_reference)], &[]);
        let waiting = tokio::spawn(async move { kubelet.publish(request).await });
        eventually("the slow blob is asked for", || slow.count(&GET, "/blobs/") > 0).await;
        let volume = node.volume("pod");
        let fast_reference = fast.reference("m:v1");
        let publish = node.publish(&volume, &fast_reference, &[]);
        tokio::time::timeout(Duration::from_secs(30), publish).await.expect("in time").expect("published");
        assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
        node.kubelet.unpublish(&stuck).await.expect("unpublished");
        let _ = waiting.await;
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn refusals_have_their_codes() {
    isolated(async {
        let (registry, node, reference) = setup(b"content").await;
        let volume = node.volume("pod");
        for (status, expected) in [
            (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
            (StatusCode::FORBIDDEN, Code::PermissionDenied),
            (StatusCode::NOT_FOUND, Code::NotFound),
            (StatusCode::TOO_MANY_REQUESTS, Code::Unavailable),
            (StatusCode::BAD_GATEWAY, Code::Unavailable),
        ] {
            registry.script(move |seen| is_manifest(seen).then(|| error(status, "SCRIPTED")));
            let result = node.publish(&volume, &reference, &[]).await.expect_err("refused");
            assert_eq!(result.code(), expected, "{}", result.message());
            assert!(
                result.message().contains("as scripted") || status == StatusCode::UNAUTHORIZED,
                "{}",
                result.message()
            );
        }
    });
}
