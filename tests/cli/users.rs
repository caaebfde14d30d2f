//! Who runs commands: root beside a plugin or without one, and an ordinary user.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use super::commands::run;
use crate::support::node::BINARY;
use crate::support::{Node, Scripted, eventually};

/// A node, where a plugin answers commands or none does.
pub async fn node(flags: &[&str], with_plugin: bool) -> Node {
    let mut node = Node::on_host(flags);
    if with_plugin {
        node.run().await;
        let control = node.root.join("control.sock");
        eventually("the control socket", || std::os::unix::net::UnixStream::connect(&control).is_ok()).await;
    }
    node
}

/// An ordinary user with a home, and with the binary in it: it lies where an ordinary user may not look.
pub struct Nobody {
    _home: tempfile::TempDir,
    pub home: PathBuf,
}

const NOBODY: u32 = 65534;

impl Nobody {
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("ocivol-home-").tempdir().expect("a directory");
        let path = home.path().canonicalize().expect("a path");
        std::os::unix::fs::chown(&path, Some(NOBODY), None).expect("changed");
        std::fs::copy(BINARY, path.join("ocivol")).expect("copied");
        Self { _home: home, home: path }
    }

    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.home.join(name);
        std::fs::create_dir(&path).expect("made");
        std::os::unix::fs::chown(&path, Some(NOBODY), None).expect("changed");
        path
    }

    pub fn command(&self, registry: &Scripted, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.home.join("ocivol"));
        command.uid(NOBODY).gid(NOBODY).env("HOME", &self.home).env("TMPDIR", &self.home);
        command.env("OCIVOL_PLAIN_HTTP", registry.host()).current_dir(&self.home).args(arguments);
        command
    }

    pub async fn ocivol(&self, registry: &Scripted, arguments: &[&str]) -> Output {
        run(self.command(registry, arguments)).await
    }

    /// What is in the home, sorted.
    pub fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.home).expect("a directory").flatten();
        let mut names: Vec<String> =
            names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}
