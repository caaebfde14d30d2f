//! Sessions of the documents: what is typed is run, and what is shown is compared with what it prints.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::Tarball;
use ocivol::oci::digest::Digest;
use serde_json::json;

use crate::store::fsck::write;
use crate::support::blocks::{commands, compare};
use crate::support::debian_registry::DebianRegistry;
use crate::support::named_tests::root;
use crate::support::node::BINARY;
use crate::support::{fixtures, isolated, noise};

/// What is run here: documents and headings.
pub const SESSIONS: [(&str, &str); 6] = [
    ("README.md", "See it work"),
    ("README.md", "On the command line"),
    ("docs/layouts.md", "Layouts: what a volume shows"),
    ("docs/archives.md", "Archives inside artifacts"),
    ("docs/operations.md", "Without a registry"),
    ("docs/operations.md", "Repair"),
];

/// Somebody at a shell.
struct Shell {
    registry: DebianRegistry,
    /// Words of the documents, and what they are here.
    names: Vec<(&'static str, String)>,
    directory: PathBuf,
    store: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Shell {
    /// In an empty directory, with a store of its own and the registry of the documents.
    async fn start() -> Self {
        let temporary = tempfile::Builder::new().prefix("ocivol-shell-").tempdir().expect("a directory");
        let base = temporary.path().canonicalize().expect("a path");
        let (directory, store) = (base.join("home"), base.join("store"));
        std::fs::create_dir(&directory).expect("a directory");
        own("/mnt");
        let registry = DebianRegistry::start().await;
        let host = registry.host();
        let names = vec![
            ("registry.example.com:5071", host.clone()),
            ("registry.example.com", host),
            ("/home/you", directory.display().to_string()),
            // What the Makefile does.
            ("make demo", "ocivol demo".to_owned()),
        ];
        Self { registry, names, directory, store, _temporary: temporary }
    }

    /// Runs the commands below a heading.
    fn run(&self, document: &str, heading: &str) {
        assert!(SESSIONS.contains(&(document, heading)), "{document}, {heading} is in no list");
        let text = std::fs::read_to_string(root().join(document)).expect(document);
        let shown: Vec<_> = commands(&text).into_iter().filter(|shown| shown.heading == heading).collect();
        assert!(!shown.is_empty(), "{document} has no commands below {heading}");
        let mut wrong = Vec::new();
        for shown in shown {
            let printed = self.type_in(&self.translated(&shown.words));
            let expected: Vec<String> = shown.printed.iter().map(|line| self.translated(line)).collect();
            if let Err(difference) = compare(&expected, &printed) {
                wrong.push(format!("{document}: $ {}\n{difference}", shown.words));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    }

    fn translated(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    /// What a command prints on both outputs. Its status is what the words say: one that fails says `ocivol: …`.
    fn type_in(&self, words: &str) -> String {
        let programs = Path::new(BINARY).parent().expect("a directory");
        let output = Command::new("bash")
            .args(["-c", &format!("exec 2>&1\n{words}")])
            .current_dir(&self.directory)
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()))
            .env("HOME", &self.directory)
            .env("OCIVOL_ROOT", &self.store)
            .env("OCIVOL_PLAIN_HTTP", self.registry.host())
            .output()
            .expect("bash");
        let text = String::from_utf8(output.stdout).expect("text");
        let fails = text.lines().any(|line| line.starts_with("ocivol: ") || line.ends_with(" is damaged"));
        assert_eq!(output.status.success(), !fails, "$ {words}: {}\n{text}", output.status);
        // How far a pull is, which is said after some seconds.
        let is_progress = |line: &&str| line.contains(" layers, ") && line.ends_with("left");
        text.lines().filter(|line| !is_progress(line)).map(|line| format!("{line}\n")).collect()
    }
}

/// Gives this test a directory of its own in the place of the machine's.
fn own(place: &str) {
    let none: Option<&str> = None;
    mount(Some("own"), place, Some("tmpfs"), MsFlags::empty(), none).expect("a mount");
}

/// The model that `ocivol demo` pushes as well, and another version of it, which has the same weights.
async fn push_models(registry: &DebianRegistry) {
    for (tag, config) in [("v1", r#"{"model_type":"tiny"}"#), ("v2", r#"{"model_type":"tiny","layers":4}"#)] {
        let layers = [
            Layer::model_file("weight", "model.safetensors", noise(1, 64 << 20)),
            Layer::model_file("weight.config", "config.json", config),
            Layer::model_file("doc", "docs/README.md", "# A tiny model\n"),
        ];
        registry.pusher("models/tiny").model(tag, &layers).await.expect("pushed");
    }
}

#[test]
fn the_readmes_demo() {
    isolated(async {
        let makefile = include_str!("../../Makefile");
        assert!(makefile.contains("\n\t$(CARGO) run --quiet -- demo\n"), "make demo is something else");
        Shell::start().await.run("README.md", "See it work");
    });
}

#[test]
fn the_readmes_commands() {
    isolated(async {
        let shell = Shell::start().await;
        push_models(&shell.registry).await;
        shell.run("README.md", "On the command line");
    });
}

#[test]
fn the_inspection_of_a_chart() {
    isolated(async {
        let shell = Shell::start().await;
        fixtures::push_one("helm", "demo-0.2.0", &shell.registry.pusher("charts/demo"), "0.2.0").await;
        shell.run("docs/layouts.md", "Layouts: what a volume shows");
    });
}

#[test]
fn an_archive_in_an_artifact() {
    isolated(async {
        let shell = Shell::start().await;
        let archive = Tarball::new()
            .file("tiny/config.json", b"{}")
            .file("tiny/model.safetensors", &noise(1, 1 << 20))
            .finish();
        let media_type = "application/vnd.cncf.model.weight.v1.tar".to_owned();
        let layer = Layer { media_type, content: archive.into(), annotations: json!({}) };
        shell.registry.pusher("models/packed").model("v1", &[layer]).await.expect("pushed");
        shell.run("docs/archives.md", "Archives inside artifacts");
    });
}

#[test]
fn archives_for_nodes_without_a_registry() {
    isolated(async {
        let mut shell = Shell::start().await;
        fixtures::push_one("modelpack", "raw", &shell.registry.pusher("models/tiny"), "v1").await;
        own("/srv");
        shell.directory = PathBuf::from("/srv/oci");
        std::fs::create_dir(&shell.directory).expect("a directory");
        let copied = Command::new("cp")
            .arg("-r")
            .arg(root().join("tests/fixtures/modelpack"))
            .arg("/srv/oci/modelpack")
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "cp");
        shell.run("docs/operations.md", "Without a registry");
    });
}

#[test]
fn a_store_that_is_damaged() {
    isolated(async {
        let shell = Shell::start().await;
        push_models(&shell.registry).await;
        let pulled = shell.type_in(&format!("ocivol pull -q {}", shell.registry.reference("models/tiny:v1")));
        assert!(pulled.starts_with("sha256:"), "{pulled}");
        let config = Digest::sha256(br#"{"model_type":"tiny"}"#);
        let blob = shell.store.join("v1/blobs/sha256").join(config.hex());
        write(&blob, br#"{"model_type":"tinz"}"#);
        shell.run("docs/operations.md", "Repair");
    });
}
