//! The store between commands: who waits for whom, what needs no lock, and what is damaged.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocivol::demo::push::Layer;

use super::commands::{command, failure, json, model, ocivol, run, start, stderr, stdout};
use super::users::node;
use crate::support::answers::{broken, gets_blob};
use crate::support::node::BINARY;
use crate::support::{Node, Scripted, eventually, isolated, noise};

/// A registry of whose only blob half comes, and then nothing.
async fn held() -> (Scripted, String) {
    const LENGTH: usize = 24 << 20;
    let content = noise(1, LENGTH);
    let registry = Scripted::with_model(content.clone()).await;
    let reference = registry.reference("m:v1");
    registry.script(move |seen| gets_blob(seen).then(|| broken(&content[..LENGTH / 2], LENGTH, true)));
    (registry, reference)
}

async fn interrupt(pulling: Child) -> Output {
    kill(Pid::from_raw(pulling.id().try_into().expect("a number")), Signal::SIGINT).expect("alive");
    tokio::task::spawn_blocking(move || pulling.wait_with_output()).await.expect("no panic").expect("an end")
}

#[test]
fn regression_the_second_command_waits_and_says_for_whom() {
    isolated(async {
        let (registry, reference) = held().await;
        let node = Node::on_host(&[]);
        let first = start(command(&node, &registry, &["pull", &reference]));
        let lock = node.root.join("lock");
        eventually("the lock", || {
            std::fs::read_to_string(&lock).is_ok_and(|text| text.contains(&first.id().to_string()))
        })
        .await;
        // To look at it needs no lock.
        let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert!(listed.contains("0 trees"), "{listed}");
        let (code, text) = failure(&ocivol(&node, &registry, &["--no-wait", "gc"]).await);
        assert_eq!(code, 1);
        assert!(text.contains(&format!("is in use by process {} on ", first.id())), "{text}");
        let mut second = start(command(&node, &registry, &["gc"]));
        let mut said = BufReader::new(second.stderr.take().expect("a pipe"));
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            said.read_line(&mut line).expect("a line");
            line
        });
        let line = line.await.expect("no panic");
        assert!(line.starts_with(&format!("waiting for process {} (--root ", first.id())), "{line}");
        assert!(line.trim_end().ends_with(&format!("pull {reference})")), "{line}");
        assert_eq!(interrupt(first).await.status.code(), Some(130));
        let second = tokio::task::spawn_blocking(move || second.wait()).await.expect("no panic");
        assert!(second.expect("a status").success());
    });
}

#[test]
fn to_list_what_is_not_there_makes_nothing() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let text = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert!(text.ends_with("0 trees; there is no store yet\n"), "{text}");
        assert_eq!(json(&ocivol(&node, &registry, &["ls", "--output", "json"]).await), serde_json::json!([]));
        assert!(!node.root.exists());
    });
}

#[test]
fn what_was_stopped_is_kept_and_listed() {
    isolated(async {
        let (registry, reference) = held().await;
        let node = Node::on_host(&[]);
        let mut pulling = start(command(&node, &registry, &["pull", &reference]));
        let mut said = BufReader::new(pulling.stderr.take().expect("a pipe"));
        let number = Pid::from_raw(pulling.id().try_into().expect("a number"));
        let ended = tokio::task::spawn_blocking(move || {
            // It says how far it is.
            let mut far = String::new();
            while !far.contains(" MiB of ") {
                far.clear();
                assert!(said.read_line(&mut far).expect("a line") > 0, "it ended");
            }
            kill(number, Signal::SIGINT).expect("alive");
            let mut last = String::new();
            said.read_to_string(&mut last).expect("text");
            (far, last, pulling.wait().expect("an end").code())
        });
        let (far, last, code) = ended.await.expect("no panic");
        assert!(far.starts_with("m:v1: 0 of 1 layers, "), "{far}");
        assert_eq!(code, Some(130));
        let last = last.lines().last().expect("a line");
        assert!(
            last.starts_with("ocivol: stopped; ") && last.ends_with(" MiB are kept, pull again to go on"),
            "{last}"
        );
        let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert!(listed.contains(" MiB unfinished, "), "{listed}");
        registry.unscript();
        let pulled = json(&ocivol(&node, &registry, &["pull", "--output", "json", &reference]).await);
        assert!(pulled["fetched"].as_u64().is_some_and(|bytes| bytes < 24 << 20), "{pulled}");
    });
}

#[test]
fn one_reference_is_compared_with_its_digests() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        registry
            .pusher("other")
            .model("v1", &[Layer::model_file("weight", "w", noise(9, 5000))])
            .await
            .expect("pushed");
        let other = registry.reference("other:v1");
        stdout(&ocivol(&node, &registry, &["pull", &reference, &other]).await);
        let text = stdout(&ocivol(&node, &registry, &["verify", &reference]).await);
        assert!(text.ends_with("1 tree, 3.00 MiB: all is as it was recorded\n"), "{text}");
        let blob = ocivol::oci::digest::Digest::sha256(&noise(1, 3 << 20));
        let path = node.root.join("v1/blobs/sha256").join(blob.hex());
        let mut content = std::fs::read(&path).expect("read");
        content[1000] ^= 1;
        std::fs::write(&path, content).expect("written");
        let output = ocivol(&node, &registry, &["verify", &reference]).await;
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(blob.hex()) && text.contains(&reference), "{text}");
        stdout(&ocivol(&node, &registry, &["verify", &other]).await);
        assert_eq!(ocivol(&node, &registry, &["verify"]).await.status.code(), Some(1));
        let (code, text) = failure(&ocivol(&node, &registry, &["verify", "r.example/absent:v1"]).await);
        assert!(code == 1 && text.contains("is not in this store"), "{text}");
    });
}

#[test]
fn flags_that_a_plugin_does_not_heed_are_named() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = node(&["--plain-http", &registry.host()], true).await;
        let host = registry.host();
        let flags = ["pull", "--plain-http", &host, "--verify-diff-ids", &reference];
        let output = ocivol(&node, &registry, &flags).await;
        let root = node.root.display();
        assert_eq!(
            stderr(&output),
            format!(
                "warning: the plugin that holds {root} pulls with its own settings; --plain-http, --verify-diff-ids are not used\n"
            )
        );
        assert!(output.status.success());
        assert!(stderr(&ocivol(&node, &registry, &["pull", &reference]).await).is_empty());
        let output = ocivol(&node, &registry, &["ls", "--stall-timeout", "9"]).await;
        assert_eq!(stderr(&output), "warning: --stall-timeout does nothing for `ocivol ls`\n");
    });
}

#[test]
fn what_cannot_be_printed_is_a_failure_and_a_reader_that_went_away_is_none() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let mut full = command(&node, &registry, &["pull", &reference]);
        let child = full
            .stdin(std::process::Stdio::null())
            .stdout(std::fs::File::options().write(true).open("/dev/full").expect("a device"))
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = tokio::task::spawn_blocking(move || child.wait_with_output())
            .await
            .expect("no panic")
            .expect("an end");
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.starts_with("ocivol: cannot write to the standard output: No space left"), "{said}");
        let mut piped = command(&node, &registry, &["pull", &reference]);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let status = tokio::task::spawn_blocking(move || {
            piped.stdout(writer).stderr(std::process::Stdio::null()).status()
        });
        assert!(status.await.expect("no panic").expect("a status").success());
    });
}

#[test]
fn errors_are_json_where_that_is_asked_for() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let absent = registry.reference("m:v1");
        let table: [(&[&str], i32, &str, &str); 4] = [
            (&["pull", &absent], 1, "not-found", "does not exist"),
            (&["pull", "UPPER/x"], 2, "invalid-argument", "not a reference"),
            (&["pull"], 2, "invalid-argument", "required"),
            (&["rm", "r.example/x:v1"], 1, "not-found", "is not in this store"),
        ];
        for (arguments, code, kind, part) in table {
            let (status, text) =
                failure(&ocivol(&node, &registry, &[&["--output", "json"], arguments].concat()).await);
            let said: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!((status, said["error"]["kind"].as_str()), (code, Some(kind)), "{text}");
            assert!(said["error"]["message"].as_str().is_some_and(|text| text.contains(part)), "{text}");
        }
    });
}

#[test]
fn completions_and_manual_pages_are_written() {
    isolated(async {
        let mut bash = Command::new(BINARY);
        bash.args(["completion", "bash"]);
        let script = stdout(&run(bash).await);
        assert!(script.contains("--pull-policy") && script.contains("_ocivol"), "{script}");
        let directory = tempfile::tempdir().expect("a directory");
        let pages = directory.path().join("man1");
        let mut man = Command::new("sh");
        man.args(["-c", "umask 022; exec \"$0\" man \"$1\"", BINARY]).arg(&pages);
        stdout(&run(man).await);
        // They are for all who may read what this user writes.
        for (path, expected) in [(pages.clone(), 0o755), (pages.join("ocivol.1"), 0o644)] {
            let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o777;
            assert_eq!(mode, expected, "{}: {mode:o}", path.display());
        }
        let mut page = String::new();
        let file = std::fs::File::open(pages.join("ocivol-pull.1"));
        file.expect("a page").read_to_string(&mut page).expect("read");
        assert!(page.contains(".TH") && page.contains("dry"), "{page}");
    });
}
