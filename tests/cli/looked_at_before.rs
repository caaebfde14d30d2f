//! What cannot work is said before anything is pulled, in the words of who types.

use std::process::{Command, Stdio};

use super::commands::{command, failure, model, ocivol, run, stdout};
use super::users::Nobody;
use crate::support::node::{BINARY, mount_at};
use crate::support::{Node, isolated};

#[test]
fn regression_an_ordinary_user_is_told_before_the_pull() {
    isolated(async {
        let (registry, reference) = model().await;
        let user = Nobody::new();
        let place = user.home.join("m");
        let words = ["mount", &reference, place.to_str().expect("text")];
        let (code, text) = failure(&user.ocivol(&registry, &words).await);
        assert_eq!(code, 1);
        assert_eq!(
            text,
            format!(
                "ocivol: mounting for others to see needs root; without, run one command with it: ocivol mount {reference} {} -- \
                 COMMAND\n",
                place.display()
            )
        );
        assert!(registry.requests().is_empty() && !place.exists());
    });
}

#[test]
fn regression_a_command_of_the_volume_needs_exec_and_statuses_are_those_of_shells() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let place = node.directory.path().canonicalize().expect("a path").join("mnt");
        let place = place.to_str().expect("text");
        let program = format!("{place}/config.json");
        let (code, text) =
            failure(&ocivol(&node, &registry, &["mount", &reference, place, "--", &program]).await);
        assert_eq!(code, 2);
        assert!(text.contains("mounted noexec; add --exec"), "{text}");
        assert!(registry.requests().is_empty());
        // What is looked for in PATH is not in the volume, wherever the command is run.
        std::fs::create_dir_all(place).expect("made");
        let mut listing = command(&node, &registry, &["mount", &reference, place, "--", "ls", place]);
        listing.current_dir(place);
        assert_eq!(stdout(&run(listing).await), "config.json\nmodel.safetensors\n");
        for (program, expected, said) in [
            ("/nonexistent/program", 127, "cannot run /nonexistent/program: No such file"),
            ("/etc/passwd", 126, "cannot run /etc/passwd: Permission denied"),
        ] {
            let output = ocivol(&node, &registry, &["mount", &reference, place, "--", program]).await;
            let text = String::from_utf8(output.stderr).expect("text");
            assert_eq!(output.status.code(), Some(expected), "{text}");
            assert!(text.lines().any(|line| line.starts_with(&format!("ocivol: {said}"))), "{text}");
        }
    });
}

#[test]
fn regression_who_uses_a_directory_that_cannot_be_unmounted_is_said() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let place = node.directory.path().canonicalize().expect("a path").join("mnt");
        let text = place.to_str().expect("text");
        stdout(&ocivol(&node, &registry, &["mount", &reference, text]).await);
        let mut user = Command::new("sleep");
        user.arg("100").current_dir(&place).stdin(Stdio::null());
        let mut user = user.spawn().expect("it starts");
        let (code, said) = failure(&ocivol(&node, &registry, &["umount", text]).await);
        assert_eq!(code, 1);
        assert_eq!(said, format!("ocivol: {text} is in use; used by process {} (sleep)\n", user.id()));
        user.kill().expect("alive");
        user.wait().expect("ended");
        stdout(&ocivol(&node, &registry, &["umount", text]).await);
        assert!(mount_at(&place).is_none());
    });
}

#[test]
fn messages_are_in_the_words_of_a_command_line() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let root = tempfile::NamedTempFile::new().expect("a file");
        let file = root.path().to_str().expect("text");
        let long = format!("/tmp/{}", "x".repeat(120));
        let docker = format!("docker://{reference}");
        let table: [(&[&str], i32, &str); 8] = [
            (&["pull", &docker], 2, "leave out docker://"),
            (&["pull", "oci://r.example/x"], 2, "leave out oci://"),
            (&["pull", &reference, "--strip-components", "x"], 2, r#"ocivol: --strip-components is "x""#),
            (&["pull", &reference, "--include", "*.gguf"], 2, "ocivol: --include pattern"),
            (&["umount", "/"], 2, "it is the root directory"),
            (&["pull", "127.0.0.1:1/x:v1"], 1, "network and DNS of this machine"),
            (&["pull", "--root", file, &reference], 2, "is no directory"),
            (&["pull", "--root", &long, &reference], 2, "is too long for the path of a socket"),
        ];
        for (arguments, code, part) in table {
            let mut words = command(&node, &registry, &[]);
            if arguments.contains(&"--root") {
                words = Command::new(BINARY);
                words.env("OCIVOL_PLAIN_HTTP", registry.host());
            }
            words.args(arguments);
            let (status, text) = failure(&run(words).await);
            assert!(status == code && text.contains(part), "{arguments:?}: {status} {text}");
        }
        // Without the variable the registry is spoken to with TLS.
        let mut plain = Command::new(BINARY);
        plain.args(["inspect", &reference]);
        let (code, text) = failure(&run(plain).await);
        assert!(
            code == 1
                && text.contains("does not speak TLS")
                && text.contains("--plain-http: registry.plainHTTP in the chart"),
            "{text}"
        );
    });
}
