//! The command line: alone, beside a running plugin, and without root.

use std::process::{Child, Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocivol::demo::push::Layer;
use serde_json::Value;

use super::users::{Nobody, node};
use crate::support::node::{BINARY, mount_at};
use crate::support::{Node, Scripted, eventually, isolated, noise};

pub async fn model() -> (Scripted, String) {
    let registry = Scripted::start().await;
    let layers = [
        Layer::model_file("weight", "model.safetensors", noise(1, 3 << 20)),
        Layer::model_file("weight.config", "config.json", "{}"),
    ];
    registry.pusher("m").model("v1", &layers).await.expect("pushed");
    let reference = registry.reference("m:v1");
    (registry, reference)
}

/// Runs the binary; it must not stop the registry that this test serves.
pub async fn ocivol(node: &Node, registry: &Scripted, arguments: &[&str]) -> Output {
    run(command(node, registry, arguments)).await
}

/// The binary with the node's store, and without the credentials of who runs the tests. The registry is named in a variable, as the
/// flag would be one that a plugin does not heed.
pub fn command(node: &Node, registry: &Scripted, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(["--root".as_ref(), node.root.as_os_str()])
        .env("OCIVOL_PLAIN_HTTP", registry.host())
        .env("DOCKER_CONFIG", "/nonexistent")
        .env("REGISTRY_AUTH_FILE", "/nonexistent")
        .args(arguments);
    command
}

pub async fn run(command: Command) -> Output {
    let child = start(command);
    tokio::task::spawn_blocking(move || child.wait_with_output().expect("an output")).await.expect("no panic")
}

/// Starts it from this thread, which has the test's mount namespace.
pub fn start(mut command: Command) -> Child {
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

pub fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).expect("JSON")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

pub fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub fn failure(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!(text.lines().count(), 1, "{text}");
    (output.status.code().expect("a code"), text)
}

#[test]
fn pull_mount_list_and_unmount_alone_and_beside_a_plugin() {
    isolated(async {
        let (registry, reference) = model().await;
        for with_plugin in [false, true] {
            let node = node(&["--plain-http", &registry.host()], with_plugin).await;
            let pulled = stdout(&ocivol(&node, &registry, &["pull", &reference]).await);
            let digest = pulled.lines().next().expect("a digest").to_owned();
            assert!(digest.parse::<ocivol::oci::digest::Digest>().is_ok(), "{pulled}");
            assert!(pulled.contains("2 files, 3.00 MiB"), "{pulled}");

            let json: Value = serde_json::from_str(&stdout(
                &ocivol(&node, &registry, &["--output", "json", "pull", &reference]).await,
            ))
            .expect("JSON");
            assert_eq!((json["digest"].as_str(), json["fetched"].as_u64()), (Some(digest.as_str()), Some(0)));
            let quiet = ocivol(&node, &registry, &["pull", "-q", &reference]).await;
            assert_eq!((stdout(&quiet), stderr(&quiet)), (format!("{digest}\n"), String::new()));

            let directory = node.directory.path().canonicalize().expect("a path").join("mnt");
            let place = directory.to_str().expect("text");
            let mounted =
                stdout(&ocivol(&node, &registry, &["mount", &reference, place, "--include", "*.json"]).await);
            assert!(mounted.starts_with(&digest), "{mounted}");
            assert_eq!(std::fs::read_to_string(directory.join("config.json")).expect("read"), "{}");
            assert!(!directory.join("model.safetensors").exists());
            assert!(mount_at(&directory).is_some_and(|mount| mount.has("ro") && mount.has("noexec")));

            let listed: Value =
                serde_json::from_str(&stdout(&ocivol(&node, &registry, &["ls", "--output", "json"]).await))
                    .expect("JSON");
            let trees = listed.as_array().expect("a list");
            assert_eq!(trees.len(), 2);
            let mounted: Vec<_> = trees.iter().filter(|tree| tree["mounted_at"][0] == place).collect();
            assert_eq!(mounted.len(), 1, "{listed}");
            assert_eq!(
                (mounted[0]["files"].as_u64(), mounted[0]["references"][0].as_str()),
                (Some(1), Some(reference.as_str()))
            );
            let text = stdout(&ocivol(&node, &registry, &["ls"]).await);
            assert!(
                text.starts_with("REFERENCE") && text.contains(&reference) && text.contains(place),
                "{text}"
            );

            stdout(&ocivol(&node, &registry, &["umount", place]).await);
            assert!(mount_at(&directory).is_none() && !directory.exists(), "it was made for the mount");
            let (code, text) = failure(&ocivol(&node, &registry, &["umount", place]).await);
            assert!(code == 1 && text.contains("nothing of ocivol's is mounted on"), "{text}");

            // A directory that was there before stays.
            std::fs::create_dir(&directory).expect("made");
            stdout(&ocivol(&node, &registry, &["mount", &reference, place]).await);
            let (code, _) = failure(&ocivol(&node, &registry, &["mount", &reference, place]).await);
            assert_eq!(code, 1, "it is mounted already");
            stdout(&ocivol(&node, &registry, &["umount", place]).await);
            assert!(mount_at(&directory).is_none() && directory.exists());
            let (code, _) = failure(&ocivol(&node, &registry, &["umount", place]).await);
            assert!(code == 1 && directory.exists());
        }
    });
}

#[test]
fn failures_are_one_line_and_have_their_status() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let absent = registry.reference("m:v2");
        let table: [(&[&str], i32, &str); 7] = [
            (&["pull", &absent], 1, "m:v2 does not exist"),
            (&["pull", "127.0.0.1:1/x:v1"], 1, "cannot reach 127.0.0.1:1"),
            (&["pull", "https://x/y"], 2, "not a reference"),
            (&["pull", &reference, "--include", "*.gguf"], 2, "*.gguf"),
            (&["mount", &reference, "/", "--path", "../x"], 2, "'..'"),
            (&["node", "--node-id", "n", "--endpoint", "tcp://1"], 2, "--endpoint"),
            (&["--parallel-downloads", "0", "pull", &reference], 2, "--parallel-downloads"),
        ];
        for (arguments, code, part) in table {
            let (status, text) = failure(&ocivol(&node, &registry, arguments).await);
            assert_eq!(status, code, "{arguments:?}: {text}");
            assert!(text.starts_with("ocivol: ") && text.contains(part), "{text}");
        }
        assert_eq!(ocivol(&node, &registry, &["frobnicate"]).await.status.code(), Some(2));
        // Where a flag does nothing its value is neither right nor wrong, and a variable says nothing at all.
        let output = ocivol(&node, &registry, &["--parallel-downloads", "0", "ls"]).await;
        assert!(output.status.success());
        assert_eq!(stderr(&output), "warning: --parallel-downloads does nothing for `ocivol ls`\n");
        for arguments in [&["ls"] as &[&str], &["gc"], &["rm", "r.example/x:v1"], &["umount", "/nonexistent"]]
        {
            for value in ["0", "many"] {
                let mut words = command(&node, &registry, arguments);
                words.env("OCIVOL_PARALLEL_DOWNLOADS", value).env("OCIVOL_ALLOW_HOSTS", "//");
                let said = stderr(&run(words).await);
                assert!(!said.contains("--parallel-downloads") && !said.contains("--allow-hosts"), "{said}");
            }
        }
        let mut words = command(&node, &registry, &["pull", &reference]);
        words.env("OCIVOL_PARALLEL_DOWNLOADS", "many");
        assert_eq!(run(words).await.status.code(), Some(2));
    });
}

#[test]
fn a_command_runs_with_the_mount_and_only_it_sees_it() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let directory = node.directory.path().canonicalize().expect("a path").join("mnt");
        let place = directory.to_str().expect("text");
        let script = format!("cat {place}/config.json; touch {place}/x 2>&1 | grep -c Read-only; exit 7");
        let output = ocivol(&node, &registry, &["mount", &reference, place, "--", "sh", "-c", &script]).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "{}1\n");
        assert_eq!(output.status.code(), Some(7), "the command's own status");
        assert!(mount_at(&directory).is_none() && !directory.exists(), "it was made for the mount");
        // A directory that was there before stays, and a command that cannot be run leaves none.
        let absent = ocivol(&node, &registry, &["mount", &reference, place, "--", "/nonexistent"]).await;
        assert_eq!((absent.status.code(), directory.exists()), (Some(127), false));
        std::fs::create_dir(&directory).expect("made");
        let output = ocivol(&node, &registry, &["mount", &reference, place, "--", "ls", place]).await;
        assert_eq!(stdout(&output), "config.json\nmodel.safetensors\n");
        assert!(mount_at(&directory).is_none() && directory.exists());
    });
}

#[test]
fn a_command_that_is_told_to_end_leaves_no_directory() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let base = node.directory.path().canonicalize().expect("a path");
        let (directory, runs) = (base.join("mnt"), base.join("runs"));
        let script = format!("touch {}; exec sleep 600", runs.display());
        let words = ["mount", &reference, directory.to_str().expect("text"), "--", "sh", "-c", &script]
            .map(str::to_owned);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let child = start(command(&node, &registry, &words));
        eventually("the command runs", || runs.exists()).await;
        assert!(directory.exists());
        kill(Pid::from_raw(child.id().try_into().expect("a number")), Signal::SIGTERM).expect("alive");
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
        let ended = ended.await.expect("no panic").expect("an end");
        assert_eq!((ended.status.code(), directory.exists()), (Some(143), false));
    });
}

#[test]
fn without_root_in_a_user_namespace() {
    isolated(async {
        let (registry, reference) = model().await;
        let user = Nobody::new();
        let home_path = &user.home;
        let as_nobody = async |arguments: &[&str]| user.ocivol(&registry, arguments).await;
        let demo = stdout(&as_nobody(&["demo"]).await);
        assert!(demo.contains("as an ordinary user") && demo.contains("done in"), "{demo}");
        let pulled = stdout(&as_nobody(&["pull", &reference]).await);
        assert!(pulled.starts_with("sha256:"), "{pulled}");
        assert!(home_path.join(".local/share/ocivol/v1").is_dir());
        let place = home_path.join("mnt");
        let place = place.to_str().expect("text");
        let script = format!("stat -c %u {place}/config.json; echo x > {place}/config.json");
        let output = as_nobody(&["mount", &reference, place, "--", "sh", "-c", &script]).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "the user is root in there");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only file system"));
        assert_eq!(user.names(), [".local", "ocivol"], "the directory was made for the mount");
    });
}

#[test]
fn the_demo_says_what_it_does_and_leaves_nothing() {
    isolated(async {
        let directory = tempfile::Builder::new().prefix("ocivol-demo-test-").tempdir().expect("a directory");
        let mut command = Command::new(BINARY);
        command.arg("demo").env("TMPDIR", directory.path());
        let text = stdout(&run(command).await);
        for part in [
            "a registry serves",
            "pushed a ModelPack model",
            "kubelet registered CSIPlugin",
            "mounted ro,nosuid,nodev,noexec",
            "the pod reads",
            "NodeGetVolumeStats says",
            "Read-only file system",
            "nothing is mounted any more",
            "done in",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(std::fs::read_dir(directory.path()).expect("listed").next().is_none());
        assert!(crate::support::node::mounts_below(directory.path()).is_empty());
    });
}
