//! The README's troubleshooting section quotes what a pod's event shows: each message here is there, word for word.

use axum::http::Method;
use axum::response::IntoResponse;
use ocivol::demo::push::Layer;

use crate::support::debian_registry::{DebianRegistry, LOGIN};
use crate::support::{Node, Scripted, isolated, noise};

/// Fails unless the README quotes `message`, with what differs from run to run replaced by `replacements`.
fn assert_quoted(what: &str, message: &str, replacements: &[(&str, &str)]) {
    let mut text = message.to_owned();
    for (from, to) in replacements {
        text = text.replace(from, to);
    }
    let readme = include_str!("../../README.md");
    let section = readme.split("## Troubleshooting").nth(1).expect("a section on troubleshooting");
    let section = section.split("\n## ").next().expect("its text");
    // The README breaks lines where it likes.
    let flat = |text: &str| {
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(flat(section).contains(&flat(&text)), "{what}: the README does not quote\n{text}");
}

#[test]
fn the_readme_quotes_what_the_pods_event_shows() {
    isolated(async {
        let registry = DebianRegistry::with_login().await;
        let layers = [Layer::model_file("weight", "model.gguf", noise(1, 1000))];
        registry.pusher("models/llama").model("v1", &layers).await.expect("pushed");
        let scripted = Scripted::start().await;
        let content = noise(2, 30 << 20);
        let digest = ocivol::oci::digest::Digest::sha256(&content).to_string();
        let large = [Layer::model_file("weight", "model.gguf", content)];
        scripted.pusher("models/llama").model("v1", &large).await.expect("pushed");
        let (host, other) = (registry.host(), scripted.host());
        let hosts = format!("{host},{other}");
        let mut node = Node::start(&["--plain-http", &hosts]).await;
        let volume = node.volume("pod");
        let replacements =
            [(host.as_str(), "registry.example.com"), (other.as_str(), "registry.example.com")];
        let good = registry.reference("models/llama:v1");

        let tag = registry.reference("models/llama:v2");
        let status = node.publish_as(&volume, &tag, &[], LOGIN).await.expect_err("a wrong tag");
        assert_quoted("wrong tag", status.message(), &replacements);

        let status =
            node.publish(&volume, "registry.invalid/models/llama:v1", &[]).await.expect_err("a wrong host");
        // Resolvers word it differently; what comes before and after does not.
        let reason = status
            .message()
            .split("cannot reach registry.invalid: ")
            .nth(1)
            .and_then(|rest| rest.split("; check").next());
        let reason = reason.unwrap_or_else(|| panic!("{}", status.message())).to_owned();
        assert_quoted(
            "wrong host",
            status.message(),
            &[(&reason, "<reason>"), ("registry.invalid", "registry.example.com")],
        );

        let status = node.publish(&volume, &good, &[]).await.expect_err("no password");
        assert_quoted("no credentials", status.message(), &replacements);
        let status =
            node.publish_as(&volume, &good, &[], (LOGIN.0, "guess")).await.expect_err("a wrong password");
        assert_quoted("wrong password", status.message(), &replacements);

        let status =
            node.publish(&volume, &good, &[("pulPolicy", "Always")]).await.expect_err("an unknown attribute");
        assert_quoted("unknown attribute", status.message(), &replacements);

        scripted.script(|seen| {
            let blob = seen.path.contains("/blobs/") && seen.method == Method::GET;
            blob.then(|| vec![0_u8; 30 << 20].into_response())
        });
        let status = node
            .publish(&volume, &scripted.reference("models/llama:v1"), &[])
            .await
            .expect_err("wrong bytes");
        let zeros = ocivol::oci::digest::Digest::sha256(&vec![0_u8; 30 << 20]).to_string();
        let digests = [
            (other.as_str(), "registry.example.com"),
            (digest.as_str(), "sha256:<wanted>"),
            (&zeros, "sha256:<got>"),
        ];
        assert_quoted("wrong digest", status.message(), &digests);
        scripted.unscript();

        let bad = ocivol::demo::tarball::Tarball::new().file("a/../../etc/passwd", b"x").finish();
        let bad = Layer::archive(bad);
        scripted.pusher("images/app").image("v1", std::slice::from_ref(&bad), &[]).await.expect("pushed");
        let status = node
            .publish(&node.volume("image"), &scripted.reference("images/app:v1"), &[])
            .await
            .expect_err("a bad layer");
        let layer = ocivol::oci::digest::Digest::sha256(&bad.content).to_string();
        assert_quoted("bad layer", status.message(), &[(&layer, "sha256:<layer>")]);

        node.kill();
        let mut full = Node::prepare(&["--plain-http", &hosts]);
        full.limit_store("16m");
        full.run().await;
        let volume = full.volume("pod");
        let status = full
            .publish(&volume, &scripted.reference("models/llama:v1"), &[])
            .await
            .expect_err("a full disk");
        assert_quoted("full disk", status.message(), &[]);
        full.stop().await;
        nix::mount::umount(&full.root).expect("unmounted");
    });
}

/// Answers TLS with a certificate that nobody signed, on a port of the loopback address.
struct SelfSigned {
    host: String,
    server: std::process::Child,
    _directory: tempfile::TempDir,
}

impl SelfSigned {
    fn start() -> Self {
        use std::io::BufRead as _;
        use std::process::{Command, Stdio};
        let directory = tempfile::tempdir().expect("a directory");
        let (key, certificate) = (directory.path().join("key.pem"), directory.path().join("certificate.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .expect("openssl; run `make test`");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let program = "import http.server, ssl, sys\n\
            server = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)\n\
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
            context.load_cert_chain(sys.argv[1], sys.argv[2])\n\
            server.socket = context.wrap_socket(server.socket, server_side=True)\n\
            print(server.server_address[1], flush=True)\n\
            server.serve_forever()\n";
        let mut server = Command::new("python3")
            .args(["-c", program])
            .args([&certificate, &key])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3; run `make test`");
        let mut port = String::new();
        let output = server.stdout.take().expect("its output");
        std::io::BufReader::new(output).read_line(&mut port).expect("a port");
        Self { host: format!("127.0.0.1:{}", port.trim()), server, _directory: directory }
    }
}

impl Drop for SelfSigned {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn regression_what_is_wrong_with_tls_is_told_from_what_is_wrong_with_the_network() {
    isolated(async {
        let secure = SelfSigned::start();
        let plain = Scripted::start().await;
        let node = Node::start(&[]).await;
        let volume = node.volume("pod");
        let status = node.publish(&volume, &format!("{}/m:v1", secure.host), &[]).await.expect_err("unknown");
        for word in [
            "cannot check the certificate of",
            "invalid peer certificate",
            "registry.caConfigMap",
            "SSL_CERT_FILE",
        ] {
            assert!(status.message().contains(word), "no {word:?} in {status}");
        }
        assert!(!status.message().contains("DNS"), "{status}");
        let status = node.publish(&volume, &plain.reference("m:v1"), &[]).await.expect_err("no TLS");
        for word in ["does not speak TLS", "--plain-http", "registry.plainHTTP"] {
            assert!(status.message().contains(word), "no {word:?} in {status}");
        }
    });
}

#[test]
fn regression_credentials_that_a_helper_has_are_named() {
    isolated(async {
        let registry = DebianRegistry::with_login().await;
        let layers = [Layer::model_file("weight", "w", "x")];
        registry.pusher("m").model("v1", &layers).await.expect("pushed");
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.json");
        let host = registry.host();
        for text in [
            serde_json::json!({"auths": {&host: {}}, "credsStore": "desktop"}),
            serde_json::json!({"credHelpers": {&host: "desktop"}}),
        ] {
            std::fs::write(&config, text.to_string()).expect("a file");
            for command in ["pull", "inspect"] {
                let run = std::process::Command::new(crate::support::node::BINARY)
                    .args(["--root".as_ref(), directory.path().join("store").as_os_str()])
                    .args(["--plain-http", &host, "--docker-config"])
                    .arg(&config)
                    .args([command, &registry.reference("m:v1")])
                    .output()
                    .expect("the binary");
                let text = String::from_utf8(run.stderr).expect("text");
                assert!(!run.status.success() && text.contains("helper \"desktop\""), "{command}: {text}");
            }
        }
    });
}
