//! `docs/cli.md` is what the binary says of itself: its help, and the JSON that it prints. `OCIVOL_WRITE_DOCS=1` writes it again.

use std::fmt::Write as _;
use std::path::Path;

use ocivol::cli::syntax;
use serde_json::Value;

use super::commands::{json, model, ocivol};
use crate::support::{Node, isolated};

const HEAD: &str = "# Command line

Every flag has a variable: `OCIVOL_` and its name, as `OCIVOL_PLAIN_HTTP`; `CSI_ENDPOINT` and `KUBE_NODE_NAME` are those of `node`. What says
which content is meant (`REF`, `--include` …) has none.

Results are printed on the standard output, everything else on the standard error. With `--output json` a result is one JSON value (of `pull`
and `rm`, one for each name), as shown at each command: `\"string\"`, `\"number\"` and `\"bool\"` stand for values of these types, `null` for what this
example does not have, and the first of a list for all of it. The last line on the standard error is then, of a command that failed,

    {\"error\":{\"kind\":\"not-found\",\"message\":\"…\"}}

`kind` is one of `invalid-argument`, `not-found`, `already-exists`, `unauthenticated`, `permission-denied`, `resource-exhausted`,
`unavailable`, `deadline-exceeded`, `aborted`, `failed-precondition`, `internal`.

Words mean the same everywhere: `digest` is what a reference resolved to, an index or a manifest; `manifest` is the manifest that is shown;
`tree` is a tree's name in the store, and `path` its directory; sizes are bytes, and times are seconds since 1970.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | failed, or (`verify`, `fsck`) something is damaged |
| 2 | wrong usage |
| 126, 127 | `mount … -- COMMAND`: it cannot be run; there is no such command. Else its own status is that of ocivol |
| 130, 143 | stopped by Ctrl-C, by SIGTERM. What was pulled is kept |

Credentials are read from `--docker-config`, or from `~/.docker/config.json` (`$DOCKER_CONFIG`) and then
`$XDG_RUNTIME_DIR/containers/auth.json` and `~/.config/containers/auth.json` (`$REGISTRY_AUTH_FILE`): what `docker login`, `podman login`,
`skopeo login`, `buildah login` and `oras login` write. Helpers that these files name (`credsStore`, `credHelpers`) are run from `PATH`.
";

/// The types of a value's parts.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(all) => all.iter().take(1).map(shape).collect(),
        Value::Object(all) => all.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
    }
}

#[test]
fn the_reference_is_what_the_binary_says() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let place = node.directory.path().canonicalize().expect("a path").join("mnt");
        let place = place.to_str().expect("text").to_owned();
        let file = node.directory.path().join("m.tar");
        let file = file.to_str().expect("text").to_owned();
        let out = node.directory.path().join("out");
        let out = out.to_str().expect("text").to_owned();
        let examples: [(&str, &[&str]); 13] = [
            ("pull", &["pull", &reference]),
            ("pull --dry-run", &["pull", "--dry-run", &reference]),
            ("mount", &["mount", &reference, &place]),
            ("ls", &["ls"]),
            ("inspect", &["inspect", &reference]),
            ("resolve", &["resolve", &reference]),
            ("umount", &["umount", &place]),
            ("export", &["export", &reference, &out]),
            ("verify", &["verify", &reference]),
            ("fsck", &["fsck"]),
            ("save", &["save", &reference, &file]),
            ("load", &["load", &file]),
            ("rm", &["rm", &reference]),
        ];
        let mut shapes = Vec::new();
        for (name, arguments) in examples {
            let printed = json(&ocivol(&node, &registry, &[&["--output", "json"], arguments].concat()).await);
            shapes.push((name, shape(&printed)));
        }
        shapes.push((
            "gc",
            shape(&json(&ocivol(&node, &registry, &["--output", "json", "gc", "--dry-run"]).await)),
        ));

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
        assert!(
            written == text,
            "docs/cli.md is not what the binary says: OCIVOL_WRITE_DOCS=1 writes it; {differs:?}"
        );
    });
}
