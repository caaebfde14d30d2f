//! Credentials as people have them: what docker, podman and their helpers know.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use ocivol::demo::push::Layer;

use super::commands::{failure, run, stderr, stdout};
use crate::support::debian_registry::{DebianRegistry, LOGIN};
use crate::support::isolated;
use crate::support::node::BINARY;

struct Home {
    directory: tempfile::TempDir,
    registry: DebianRegistry,
}

impl Home {
    async fn new() -> Self {
        let registry = DebianRegistry::with_login().await;
        registry
            .pusher("m")
            .model("v1", &[Layer::model_file("weight", "w", "content")])
            .await
            .expect("pushed");
        Self { directory: tempfile::tempdir().expect("a directory"), registry }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    /// A helper `test` that does what `text` says.
    fn helper(&self, text: &str) {
        let name = "bin/docker-credential-test";
        self.write(name, &format!("#!/bin/sh\n{text}\n"));
        std::fs::set_permissions(self.path().join(name), std::fs::Permissions::from_mode(0o755))
            .expect("allowed");
    }

    async fn ocivol(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command
            .env("HOME", self.path())
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("PATH", format!("{}:/usr/bin:/bin", self.path().join("bin").display()))
            .env_remove("DOCKER_CONFIG")
            .env_remove("REGISTRY_AUTH_FILE")
            .env("OCIVOL_PLAIN_HTTP", self.registry.host())
            .arg("--root")
            .arg(self.path().join("store"))
            .args(arguments);
        run(command).await
    }

    fn reference(&self) -> String {
        self.registry.reference("m:v1")
    }
}

fn login() -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1))
}

#[test]
fn regression_credentials_are_found_where_docker_podman_and_helpers_have_them() {
    isolated(async {
        let home = Home::new().await;
        let host = home.registry.host();
        let reference = home.reference();
        let (code, text) = failure(&home.ocivol(&["resolve", &reference]).await);
        assert_eq!(code, 1);
        assert!(
            text.contains(&format!("log in with `docker login {host}`"))
                && !text.contains("nodePublishSecretRef"),
            "{text}"
        );

        // podman's.
        let auths = format!(r#"{{"auths":{{"{host}":{{"auth":"{}"}}}}}}"#, login());
        home.write("run/containers/auth.json", &auths);
        stdout(&home.ocivol(&["resolve", &reference]).await);
        stdout(&home.ocivol(&["pull", &reference]).await);
        std::fs::remove_file(home.path().join("run/containers/auth.json")).expect("removed");
        home.write(".config/containers/auth.json", &auths);
        stdout(&home.ocivol(&["inspect", &reference]).await);
        std::fs::remove_file(home.path().join(".config/containers/auth.json")).expect("removed");

        // A helper of docker's, which has a place for the registry and nothing in it.
        home.write(".docker/config.json", &format!(r#"{{"auths":{{"{host}":{{}}}},"credsStore":"test"}}"#));
        let output = home.ocivol(&["resolve", &reference]).await;
        let said = stderr(&output);
        assert!(
            said.contains(&format!(r#"config.json leaves {host} to the credential helper "test": docker-credential-test is not in PATH"#)),
            "{said}"
        );
        let (user, password) = LOGIN;
        home.helper(&format!(
            r#"read server; [ "$1 $server" = "get {host}" ] && echo '{{"Username":"{user}","Secret":"{password}"}}'"#
        ));
        stdout(&home.ocivol(&["resolve", &reference]).await);
        let place = home.path().join("mnt");
        let place = place.to_str().expect("text");
        let mounted =
            home.ocivol(&["mount", &reference, place, "--pull-policy", "always", "--", "cat"]).await;
        assert!(mounted.status.success(), "{}", stderr(&mounted));
        // What fails is said, and not what it printed.
        home.helper("echo hunter2; exit 3");
        let said = stderr(&home.ocivol(&["resolve", &reference]).await);
        assert!(said.contains("status 3") && !said.contains("hunter2"), "{said}");
        // A name that is a path is none.
        home.write(".docker/config.json", r#"{"credsStore":"../../bin/sh"}"#);
        let said = stderr(&home.ocivol(&["resolve", &reference]).await);
        assert!(said.contains("that is no name of one"), "{said}");
        // A file that cannot be read is named.
        home.write(".docker/config.json", "{");
        let (code, text) = failure(&home.ocivol(&["resolve", &reference]).await);
        assert!(code == 2 && text.contains(".docker/config.json is not a Docker config: line 1"), "{text}");
    });
}
