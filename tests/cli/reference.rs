//! `docs/cli.md` is what the binary says of itself: its help, and the JSON that it prints. `make docs` writes it again.

use std::fmt::Write as _;
use std::path::Path;

use ocivol::cli::syntax;
use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use serde_json::Value;

use super::commands::{json, model, ocivol, stdout};
use crate::support::{Node, Scripted, isolated, noise};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

const HEAD: &str = "# Command line

Flags that say how ocivol works have variables, where the help of a command has `[env: …]`: `OCIVOL_` and the flag's name, but for `CSI_ENDPOINT`
and `KUBE_NODE_NAME` of `node`, and for flags that may be given several times, whose variables are in the plural (`--pin`: `OCIVOL_PINS`). A
variable is read by the commands that do something with its flag. What says which content is meant (`REF`, `--include` …), and what one
command does (`--dry-run`, `--exec`, `--repair`), has none, nor has `-v`.

Results are printed on the standard output, everything else on the standard error. With `--output json` a result is one JSON value (of `pull`
and `rm`, one for each name), as shown at each command: `\"string\"`, `\"number\"` and `\"bool\"` stand for values of these types, `null` for what this
example does not have, and one of a list for all of it. The last line on the standard error is then, of a command that failed,

    {\"error\":{\"kind\":\"not-found\",\"message\":\"…\"}}

`kind` is one of `invalid-argument`, `not-found`, `already-exists`, `unauthenticated`, `permission-denied`, `resource-exhausted`,
`unavailable`, `deadline-exceeded`, `aborted`, `failed-precondition`, `internal`.

Words mean the same everywhere: `digest` is what a reference resolved to, an index or a manifest; `manifest` is the manifest that is shown;
`tree` is a tree's name in the store, and `path` its directory; sizes are bytes, and times are seconds since 1970. What asks a registry (`inspect`,
`resolve`, `pull --dry-run`) counts blobs as the registry has them, compressed as they are; `pull`, `mount`, `export` and `ls` count the files of the volume.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | failed, or (`verify`, `fsck`) something is damaged, or (`status`) the plugin is not ready |
| 2 | wrong usage |
| 126, 127 | `mount … -- COMMAND`: it cannot be run; there is no such command. Else its own status is that of ocivol |
| 130, 143 | stopped by Ctrl-C, by SIGTERM. What was pulled is kept |

Credentials are read from `--docker-config`, or from `~/.docker/config.json` (`$DOCKER_CONFIG`) and then
`$XDG_RUNTIME_DIR/containers/auth.json` and `~/.config/containers/auth.json` (`$REGISTRY_AUTH_FILE`): what `docker login`, `podman login`,
`skopeo login`, `buildah login` and `oras login` write. Helpers that these files name (`credsStore`, `credHelpers`) are run from `PATH`.
";

/// What a plugin says of itself that has a pull whose manifest never comes.
async fn status_of_a_busy_plugin(node: &mut Node, registry: &Scripted) -> Value {
    node.env.insert("OCIVOL_PLAIN_HTTP".to_owned(), registry.host());
    node.run_registered().await;
    registry.script(|_| {
        let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        Some(axum::response::Response::new(axum::body::Body::from_stream(never)))
    });
    let (volume, reference) = (node.volume("pod"), registry.reference("late:v1"));
    let request = node.kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
    let kubelet = node.kubelet.clone();
    let waiting = tokio::spawn(async move { kubelet.publish(request).await });
    let began = std::time::Instant::now();
    loop {
        let (_, status) = node.command(&["status"]).await;
        if status["pulls"][0]["pods"][0].is_string() {
            waiting.abort();
            node.kill();
            return status;
        }
        assert!(began.elapsed() < crate::support::PATIENCE, "{status}");
    }
}

/// The types of a value's parts.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(all) => all.iter().map(shape).reduce(joined).into_iter().collect(),
        Value::Object(all) => all.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
    }
}

/// The shape of one of two things of which each may have what the other does not.
fn joined(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Null, other) => other,
        (Value::Array(one), Value::Array(other)) => {
            one.into_iter().chain(other).reduce(joined).into_iter().collect()
        }
        (Value::Object(mut all), Value::Object(other)) => {
            for (key, value) in other {
                let known = all.remove(&key).unwrap_or_default();
                all.insert(key, joined(known, value));
            }
            Value::Object(all)
        }
        (one, _) => one,
    }
}

/// An index of one model, which a registry also says of what else there is about it.
async fn index(registry: &Scripted) -> String {
    let pusher = registry.pusher("m");
    let content = noise(2, 5_000);
    let model = pusher.model("child", &[Layer::model_file("weight", "w", content)]).await.expect("pushed");
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "annotations": { "org.opencontainers.image.title": "m" },
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": model, "size": 1,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "platform": { "os": "linux", "architecture": "amd64" }, "annotations": { "org.opencontainers.image.title": "w" },
        }, {
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::sha256(b"other"), "size": 1,
            "platform": { "os": "linux", "architecture": "arm64" },
        }],
    });
    pusher.manifest("all", INDEX, &index.to_string()).await.expect("pushed");
    registry.reference("m:all")
}

#[test]
fn the_reference_is_what_the_binary_says() {
    isolated(async {
        let (registry, reference) = model().await;
        let mut node = Node::on_host(&[]);
        let place = node.directory.path().canonicalize().expect("a path").join("mnt");
        let place = place.to_str().expect("text").to_owned();
        let file = node.directory.path().join("m.tar");
        let file = file.to_str().expect("text").to_owned();
        let out = node.directory.path().join("out");
        let out = out.to_str().expect("text").to_owned();
        let all = index(&registry).await;
        let (platform, other) = ("linux/amd64", registry.reference("m:child"));
        stdout(&ocivol(&node, &registry, &["pull", &reference, &other]).await);
        // The tag moves, so that its name is taken from one tree, and another goes with it.
        let layers = [Layer::model_file("weight", "moved", noise(3, 5_000))];
        registry.pusher("m").model("child", &layers).await.expect("pushed");
        stdout(&ocivol(&node, &registry, &["pull", &all, &other]).await);
        let blob = Digest::sha256(&noise(1, 3 << 20));
        let blob = node.root.join("v1/blobs/sha256").join(blob.hex());
        let examples: [(&str, &[&str]); 14] = [
            ("pull", &["pull", &all, "--platform", platform]),
            ("pull --dry-run", &["pull", "--dry-run", &reference]),
            ("mount", &["mount", &reference, &place]),
            ("ls", &["ls"]),
            ("inspect", &["inspect", &all, "--platform", platform]),
            ("resolve", &["resolve", &reference]),
            ("umount", &["umount", &place]),
            ("export", &["export", &reference, &out]),
            ("save", &["save", &reference, &file]),
            ("load", &["load", &file]),
            ("rm", &["rm", &other]),
            ("gc", &["gc", "--dry-run"]),
            ("verify", &["verify", &reference]),
            ("fsck", &["fsck"]),
        ];
        let mut shapes = Vec::new();
        for (name, arguments) in examples {
            if name == "verify" {
                // What is damaged has more to say, and is the exit status.
                std::fs::write(&blob, "other content").expect("written");
            }
            let output = ocivol(&node, &registry, &[&["--output", "json"], arguments].concat()).await;
            let printed = match name {
                "verify" | "fsck" => serde_json::from_slice(&output.stdout).expect("JSON"),
                _ => json(&output),
            };
            shapes.push((name, shape(&printed)));
        }
        shapes.push(("status", shape(&status_of_a_busy_plugin(&mut node, &registry).await)));
        for (name, keys) in [
            ("status", &["checks", "pulls"] as &[&str]),
            ("ls", &["moved", "mounted_by", "references"]),
            ("inspect", &["children", "manifest", "store"]),
            ("rm", &["untagged", "removed"]),
            ("verify", &["findings"]),
            ("fsck", &["findings"]),
        ] {
            let (_, shape) = shapes.iter().find(|(known, _)| *known == name).expect("shown");
            let shape = if name == "ls" { &shape[0] } else { shape };
            for key in keys {
                let has_some = !shape[key].is_null() && shape[key] != serde_json::json!([]);
                assert!(has_some, "the example of {name} has no {key}: {shape}");
            }
        }

        let mut text = HEAD.to_owned();
        let all = syntax::command();
        let names: Vec<String> = all.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for name in names {
            // As wide as it is anywhere.
            let mut command = all.find_subcommand(&name).expect("a command").clone().term_width(100);
            let help = command.render_help().to_string();
            let help = help.trim_end().lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
            write!(text, "\n## {name}\n\n```\n{help}\n```\n").expect("memory");
            let own = shapes.iter().filter(|(known, _)| known.split(' ').next() == Some(name.as_str()));
            for (shown, shape) in own {
                let json = serde_json::to_string_pretty(shape).expect("JSON");
                write!(text, "\n`{shown} --output json`:\n\n```json\n{json}\n```\n").expect("memory");
            }
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
        if std::env::var_os("OCIVOL_WRITE_DOCS").is_some() {
            std::fs::write(&path, &text).expect("written");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = written.lines().zip(text.lines()).find(|(old, new)| old != new);
        assert!(written == text, "docs/cli.md is not what the binary says: make docs writes it; {differs:?}");
    });
}
