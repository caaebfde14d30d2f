//! Every RPC and condition of the CSI specification that applies without a controller, over the real socket.

use std::os::unix::fs::PermissionsExt;

use axum::response::IntoResponse;
use ocivol::csi::transport;
use ocivol::csi::v1::identity_client::IdentityClient;
use ocivol::csi::v1::node_service_capability::{Type, rpc};
use ocivol::csi::v1::volume_capability::access_mode::Mode;
use ocivol::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use ocivol::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeExpandVolumeRequest, NodeGetCapabilitiesRequest,
    NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, ProbeRequest,
};
use ocivol::demo::push::Layer;
use ocivol::demo::registry::error;
use ocivol::oci::digest::Digest;
use tonic::Code;

use crate::support::node::DRIVER;
use crate::support::{Node, Scripted, isolated};

#[test]
fn identity_says_who_it_is() {
    isolated(async {
        let node = Node::start(&[]).await;
        let channel = transport::connect(&node.socket).await.expect("connected");
        let mut identity = IdentityClient::new(channel);
        let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.expect("info").into_inner();
        assert_eq!((info.name.as_str(), info.vendor_version.as_str()), (DRIVER, env!("CARGO_PKG_VERSION")));
        let capabilities = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await;
        assert!(capabilities.expect("capabilities").into_inner().capabilities.is_empty());
        assert_eq!(identity.probe(ProbeRequest {}).await.expect("a probe").into_inner().ready, Some(true));
        let mode = std::fs::metadata(&node.socket).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    });
}

#[test]
fn node_says_what_it_can() {
    isolated(async {
        let node = Node::start(&[]).await;
        let mut client = node.kubelet.node().await.expect("connected");
        let found = client.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.expect("capabilities");
        let types: Vec<_> = found
            .into_inner()
            .capabilities
            .into_iter()
            .map(|capability| match capability.r#type {
                Some(Type::Rpc(rpc)) => rpc.r#type(),
                None => panic!("a capability without a type"),
            })
            .collect();
        assert_eq!(types, [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition]);
        let info = client.node_get_info(NodeGetInfoRequest {}).await.expect("info").into_inner();
        assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 0));
        let stage = NodeStageVolumeRequest { volume_id: "v".into() };
        let unstage = NodeUnstageVolumeRequest { volume_id: "v".into() };
        let expand = NodeExpandVolumeRequest { volume_id: "v".into() };
        let answers = [
            client.node_stage_volume(stage).await.map(drop),
            client.node_unstage_volume(unstage).await.map(drop),
            client.node_expand_volume(expand).await.map(drop),
        ];
        for answer in answers {
            assert_eq!(answer.expect_err("not advertised").code(), Code::Unimplemented);
        }
    });
}

#[test]
fn publish_answers_every_condition_with_its_code() {
    isolated(async {
        let registry = Scripted::with_model("content").await;
        // What the registry answers for manifests whose tag is a status, and for one blob.
        let tampered = Layer::model_file("weight", "w", "tampered with");
        let tampered_digest = Digest::sha256(&tampered.content).to_string();
        registry.pusher("m").model("tampered", &[tampered]).await.expect("pushed");
        registry.pusher("m").artifact("strange", "a/b", "c/d", "{}", &[]).await.expect("pushed");
        registry.script(move |seen| {
            if seen.path.ends_with(&tampered_digest) {
                return Some("TAMPERED WITH".into_response());
            }
            let (_, status) = seen.path.split_once("/manifests/status-")?;
            Some(error(status.parse().expect("a status"), "SCRIPTED"))
        });
        let host = registry.host();
        let node = Node::start(&["--plain-http", &format!("{host},127.0.0.1:1")]).await;
        let reference = registry.reference("m:v1");
        let volume = node.volume("pod");
        let good = node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
        type Change<'a> = Box<dyn Fn(&mut NodePublishVolumeRequest) + 'a>;
        let set = |key: &'static str, value: &str| -> Change<'static> {
            let value = value.to_owned();
            Box::new(move |request| {
                request.volume_context.insert(key.into(), value.clone());
            })
        };
        let mode = |mode: Mode, readonly: bool| -> Change<'static> {
            Box::new(move |request| {
                let capability = request.volume_capability.as_mut().expect("a capability");
                capability.access_mode = Some(AccessMode { mode: mode.into() });
                request.readonly = readonly;
                // As for a PersistentVolume: inline volumes are always announced as written by one node.
                request.volume_context.insert("csi.storage.k8s.io/ephemeral".into(), "false".into());
            })
        };
        let flags = |flag: &'static str| -> Change<'static> {
            Box::new(move |request| {
                let mount = MountVolume { mount_flags: vec![flag.into()], ..Default::default() };
                let capability = request.volume_capability.as_mut().expect("a capability");
                capability.access_type = Some(AccessType::Mount(mount));
            })
        };
        let outside = node.directory.path().join("outside").display().to_string();
        let table: Vec<(&str, Change<'_>, Code)> = vec![
            ("never pulled", set("pullPolicy", "Never"), Code::NotFound),
            ("no volume ID", Box::new(|request| request.volume_id.clear()), Code::InvalidArgument),
            ("no target", Box::new(|request| request.target_path.clear()), Code::InvalidArgument),
            ("no capability", Box::new(|request| request.volume_capability = None), Code::InvalidArgument),
            (
                "no access type",
                Box::new(|request| {
                    request.volume_capability.as_mut().expect("a capability").access_type = None;
                }),
                Code::InvalidArgument,
            ),
            (
                "block",
                Box::new(|request| {
                    let capability = request.volume_capability.as_mut().expect("a capability");
                    capability.access_type = Some(AccessType::Block(BlockVolume {}));
                }),
                Code::InvalidArgument,
            ),
            ("unknown mode", mode(Mode::Unknown, true), Code::InvalidArgument),
            ("writer", mode(Mode::SingleNodeWriter, false), Code::FailedPrecondition),
            ("many writers", mode(Mode::MultiNodeMultiWriter, true), Code::FailedPrecondition),
            ("flag rw", flags("rw"), Code::InvalidArgument),
            ("flag context", flags("context=system_u:object_r:x:s0"), Code::InvalidArgument),
            ("no reference", set("reference", ""), Code::InvalidArgument),
            ("bad reference", set("reference", "https://r.example/x"), Code::InvalidArgument),
            ("unknown attribute", set("pulPolicy", "Always"), Code::InvalidArgument),
            ("bad policy", set("pullPolicy", "Sometimes"), Code::InvalidArgument),
            ("bad platform", set("platform", "linux"), Code::InvalidArgument),
            ("bad glob", set("include", "["), Code::InvalidArgument),
            ("include without a match", set("include", "*.gguf"), Code::InvalidArgument),
            ("bad path", set("path", "../x"), Code::InvalidArgument),
            ("absent path", set("path", "absent"), Code::InvalidArgument),
            (
                "target outside",
                Box::new(|request| request.target_path = outside.clone()),
                Code::InvalidArgument,
            ),
            (
                "relative target",
                Box::new(|request| request.target_path = "a/b".into()),
                Code::InvalidArgument,
            ),
            (
                "unreadable secret",
                Box::new(|request| {
                    request.secrets.insert(".dockerconfigjson".into(), "{".into());
                }),
                Code::InvalidArgument,
            ),
            ("absent tag", set("reference", &registry.reference("m:v2")), Code::NotFound),
            ("absent repository", set("reference", &registry.reference("n:v1")), Code::NotFound),
            ("401", set("reference", &registry.reference("m:status-401")), Code::Unauthenticated),
            ("403", set("reference", &registry.reference("m:status-403")), Code::PermissionDenied),
            ("404", set("reference", &registry.reference("m:status-404")), Code::NotFound),
            ("429", set("reference", &registry.reference("m:status-429")), Code::Unavailable),
            ("503", set("reference", &registry.reference("m:status-503")), Code::Unavailable),
            ("wrong content", set("reference", &registry.reference("m:tampered")), Code::FailedPrecondition),
            ("no family", set("reference", &registry.reference("m:strange")), Code::FailedPrecondition),
            ("nobody listens", set("reference", "127.0.0.1:1/x:v1"), Code::Unavailable),
        ];
        for (name, change, expected) in table {
            let mut request = good.clone();
            change(&mut request);
            let status = node.kubelet.publish(request).await.expect_err(name);
            assert_eq!(status.code(), expected, "{name}: {}", status.message());
            assert!(!status.message().is_empty() && status.details().is_empty(), "{name}");
            assert!(!volume.target.exists(), "{name} left a target behind");
        }
        node.kubelet.publish(good.clone()).await.expect("published");
        node.kubelet.publish(good.clone()).await.expect("the same again");
        let mut other = good.clone();
        other.volume_context.insert("exec".into(), "true".into());
        let status = node.kubelet.publish(other).await.expect_err("other arguments");
        assert_eq!(status.code(), Code::AlreadyExists, "{}", status.message());
        let mut tokens = good;
        tokens.volume_context.insert("csi.storage.k8s.io/serviceAccount.tokens".into(), "new".into());
        tokens.secrets.insert("username".into(), "new".into());
        tokens.secrets.insert("password".into(), "new".into());
        node.kubelet.publish(tokens).await.expect("secrets and the cluster's keys do not count");
        // One volume in several pods of the node: kubelet does that with a PersistentVolume of any mode.
        let second = node.volume("second");
        let mut elsewhere = node.kubelet.publish_request(&second, &[("reference", &reference)], &[]);
        elsewhere.volume_id.clone_from(&volume.volume_id);
        node.kubelet.publish(elsewhere).await.expect("another target");
        node.kubelet.unpublish(&second).await.expect("unpublished");
        assert!(volume.target.join("w").exists(), "the first is still there");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn unpublish_and_stats_answer_every_condition_with_their_code() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers = [Layer::model_file("weight", "w", "content"), Layer::model_file("doc", "d/r", "more")];
        registry.pusher("m").model("v1", &layers).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let path = volume.target.display().to_string();
        let unpublish = async |volume_id: &str, target_path: &str| {
            let request =
                NodeUnpublishVolumeRequest { volume_id: volume_id.into(), target_path: target_path.into() };
            let mut client = node.kubelet.node().await.expect("connected");
            client.node_unpublish_volume(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
        };
        let stats = async |volume_id: &str, volume_path: &str| {
            let request = NodeGetVolumeStatsRequest {
                volume_id: volume_id.into(),
                volume_path: volume_path.into(),
                ..Default::default()
            };
            let mut client = node.kubelet.node().await.expect("connected");
            client.node_get_volume_stats(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
        };
        assert_eq!(unpublish("", &path).await, Code::InvalidArgument);
        assert_eq!(unpublish("v", "").await, Code::InvalidArgument);
        assert_eq!(unpublish("unknown", &path).await, Code::Ok, "nothing is there");
        let absent = path.replace("pods/pod", "pods/absent");
        assert_eq!(unpublish("unknown", &absent).await, Code::Ok, "not even a pod");
        assert_eq!(stats("", &path).await, Code::InvalidArgument);
        assert_eq!(stats("v", "").await, Code::InvalidArgument);
        assert_eq!(stats("v", "some/path").await, Code::NotFound);
        assert_eq!(stats(&volume.volume_id, &path).await, Code::NotFound);
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        assert_eq!(stats("another", &path).await, Code::NotFound);
        assert_eq!(stats(&volume.volume_id, "/etc").await, Code::NotFound);
        let usage = node.kubelet.stats(&volume).await.expect("stats");
        assert_eq!((usage[0].total, usage[0].used, usage[0].available), (11, 11, 0));
        assert_eq!((usage[1].total, usage[1].available), (4, 0), "two files, two directories");
        assert_eq!(unpublish(&volume.volume_id, &path).await, Code::Ok);
        assert_eq!(unpublish(&volume.volume_id, &path).await, Code::Ok, "again");
        assert!(!volume.target.exists());
    });
}

#[test]
fn writer_modes_can_be_allowed_and_are_read_only_anyway() {
    isolated(async {
        let registry = Scripted::with_model("content").await;
        let root = tempfile::tempdir().expect("a directory");
        let base = root.path().canonicalize().expect("a path");
        let flags = [
            "--plain-http",
            &registry.host(),
            "--allow-writer-modes",
            "--target-root",
            base.to_str().expect("text"),
        ];
        // As csi-sanity uses it.
        let mut node = Node::on_host(&flags);
        node.run().await;
        let volume = node.volume("pod");
        let mut request =
            node.kubelet.publish_request(&volume, &[("reference", &registry.reference("m:v1"))], &[]);
        request.readonly = false;
        request.target_path = base.join("target").display().to_string();
        node.kubelet.publish(request).await.expect("published");
        let error = std::fs::write(base.join("target/w"), "x").expect_err("read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        let mut client = node.kubelet.node().await.expect("connected");
        let target_path = base.join("target").display().to_string();
        let request = NodeUnpublishVolumeRequest { volume_id: volume.volume_id, target_path };
        client.node_unpublish_volume(request).await.expect("unpublished");
        assert!(!base.join("target").exists());
    });
}

#[test]
fn t51_only_root_may_use_the_sockets() {
    isolated(async {
        let node = Node::start(&[]).await;
        let directory = node.directory.path();
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).expect("changed");
        // The mode alone keeps others out; with an open mode the peer's user does.
        for mode in [0o600, 0o666] {
            std::fs::set_permissions(&node.socket, std::fs::Permissions::from_mode(mode)).expect("changed");
            let script = format!(
                "import os,socket\nos.setgid(65534)\nos.setuid(65534)\ns=socket.socket(socket.AF_UNIX)\n\
                 s.settimeout(100)\ntry:\n\x20s.connect('{}')\n\x20s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n')\n\
                 \x20print(len(s.recv(100)))\nexcept (PermissionError, ConnectionResetError, BrokenPipeError): print('refused')",
                node.socket.display()
            );
            let output =
                std::process::Command::new("python3").args(["-c", &script]).output().expect("python3");
            let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            assert!(printed == "refused" || printed == "0", "mode {mode:o}: {printed:?} {output:?}");
        }
    });
}
