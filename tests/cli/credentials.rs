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
        run(self.command(arguments)).await
    }

    fn command(&self, arguments: &[&str]) -> Command {
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
        command
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

#[test]
fn regression_the_first_file_that_knows_the_registry_wins() {
    isolated(async {
        let home = Home::new().await;
        let (host, reference) = (home.registry.host(), home.reference());
        let (user, password) = LOGIN;
        let wrong = base64::engine::general_purpose::STANDARD.encode("nobody:wrong");
        let counted = home.path().join("asked");
        home.helper(&format!(
            r#"echo >>{}; echo '{{"Username":"{user}","Secret":"{password}"}}'"#,
            counted.display()
        ));
        // The helper of docker's file is asked before podman's entry is believed, and once for all references.
        home.write(".docker/config.json", r#"{"credsStore":"test"}"#);
        home.write("run/containers/auth.json", &format!(r#"{{"auths":{{"{host}":{{"auth":"{wrong}"}}}}}}"#));
        stdout(&home.ocivol(&["pull", &reference, &reference]).await);
        assert_eq!(std::fs::read_to_string(&counted).expect("asked").lines().count(), 1);
        // And an entry of docker's file before anything of podman's.
        home.write(".docker/config.json", &format!(r#"{{"auths":{{"{host}":{{"auth":"{}"}}}}}}"#, login()));
        home.write("run/containers/auth.json", r#"{"credsStore":"test"}"#);
        stdout(&home.ocivol(&["resolve", &reference]).await);
        assert_eq!(std::fs::read_to_string(&counted).expect("asked").lines().count(), 1);
        // Nobody is asked for what lies on this machine.
        home.write(".docker/config.json", r#"{"credsStore":"test"}"#);
        let layout = format!("oci-layout:{}", home.path().join("absent").display());
        failure(&home.ocivol(&["resolve", &layout]).await);
        assert_eq!(std::fs::read_to_string(&counted).expect("asked").lines().count(), 1);
    });
}

#[test]
fn variables_without_a_value_and_files_that_are_none_are_passed_over() {
    isolated(async {
        let home = Home::new().await;
        let (host, reference) = (home.registry.host(), home.reference());
        let auths = format!(r#"{{"auths":{{"{host}":{{"auth":"{}"}}}}}}"#, login());
        home.write(".docker/config.json", &auths);
        let mut command = home.command(&["resolve", &reference]);
        command.env("DOCKER_CONFIG", "").env("REGISTRY_AUTH_FILE", "").env("XDG_RUNTIME_DIR", "");
        stdout(&run(command).await);
        // A relative path would be another file in each directory.
        std::fs::remove_file(home.path().join(".docker/config.json")).expect("removed");
        home.write("relative/containers/auth.json", &auths);
        let mut command = home.command(&["resolve", &reference]);
        command.env("XDG_RUNTIME_DIR", "relative").current_dir(home.path());
        failure(&run(command).await);
        // What is read without end, or not at all, is said and passed over.
        home.write(".config/containers/auth.json", &auths);
        let runtime = home.path().join("run/containers/auth.json");
        std::fs::create_dir_all(runtime.parent().expect("a directory")).expect("made");
        assert!(Command::new("mkfifo").arg(&runtime).status().expect("it starts").success());
        let output = home.ocivol(&["resolve", &reference]).await;
        let said = stderr(&output);
        assert!(
            output.status.success() && said.contains("run/containers/auth.json: it is no file; going on"),
            "{said}"
        );
        let (code, text) =
            failure(&home.ocivol(&["resolve", "--docker-config", "/dev/zero", &reference]).await);
        assert!(code == 2 && text.contains("/dev/zero"), "{text}");
    });
}
