//! Certificates of the test's own, made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// A key that is quickly made.
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// What `openssl ca` wants to be told.
const SETTINGS: &str = "[ca]\ndefault_ca = it\n[it]\ndatabase = index\nnew_certs_dir = .\nrand_serial = yes\n\
    unique_subject = no\ndefault_md = sha256\npolicy = any\ncopy_extensions = copy\n[any]\ncommonName = supplied\n";

/// An authority that signs certificates, and that nobody knows.
pub struct CertificateAuthority {
    directory: TempDir,
}

/// A certificate, and its key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn openssl(directory: &Path, arguments: &[&[&str]]) {
    let made = Command::new("openssl").args(arguments.concat()).current_dir(directory).output();
    let made = made.unwrap_or_else(|error| panic!("openssl cannot be started: {error}; run `make test`"));
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
}

fn temporary() -> TempDir {
    tempfile::Builder::new().prefix("ocivol-certificates-").tempdir().expect("a directory")
}

impl CertificateAuthority {
    pub fn new() -> Self {
        Self::named("an authority")
    }

    /// One that calls itself this.
    pub fn named(name: &str) -> Self {
        let directory = temporary();
        let base = directory.path();
        std::fs::create_dir(base.join("bundle")).expect("a directory");
        for (name, content) in [("settings", SETTINGS), ("index", "")] {
            std::fs::write(base.join(name), content).expect("a file");
        }
        let extensions =
            ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        let files = ["-keyout", "authority.key", "-out", "bundle/ca.crt"];
        let subject = format!("/CN={name}");
        let request = ["req", "-x509", "-days", "2", "-subj", &subject];
        openssl(base, &[&request, &KEY, &extensions, &files]);
        Self { directory }
    }

    /// The bundle that makes others trust this authority, alone in its directory.
    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle/ca.crt")
    }

    /// A certificate for `name`, as `subjectAltName` has it: `IP:127.0.0.1`. It is good now.
    pub fn sign(&self, name: &str) -> Identity {
        self.sign_with(name, &["-days", "2"])
    }

    /// A certificate that is good between these two times, as in `20200101000000Z`.
    pub fn sign_for(&self, name: &str, from: &str, until: &str) -> Identity {
        self.sign_with(name, &["-startdate", from, "-enddate", until])
    }

    fn sign_with(&self, name: &str, validity: &[&str]) -> Identity {
        let base = self.directory.path();
        let name = format!("subjectAltName={name}");
        let extensions = ["-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"];
        let files = ["-keyout", "server.key", "-out", "server.request"];
        openssl(base, &[&["req", "-new", "-subj", "/CN=registry"], &KEY, &extensions, &files]);
        let authority = ["-config", "settings", "-cert", "bundle/ca.crt", "-keyfile", "authority.key"];
        let files = ["-in", "server.request", "-out", "server.crt"];
        openssl(base, &[&["ca", "-batch", "-notext"], &authority, &files, validity]);
        Identity::read(base)
    }
}

/// Text as RFC 7468 has it.
fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl Identity {
    /// A certificate for `name` that nobody but itself signed.
    pub fn self_signed(name: &str) -> Self {
        let directory = temporary();
        let name = format!("subjectAltName={name}");
        let request = ["req", "-x509", "-days", "2", "-subj", "/CN=registry", "-addext", &name];
        openssl(directory.path(), &[&request, &KEY, &["-keyout", "server.key", "-out", "server.crt"]]);
        Self::read(directory.path())
    }

    fn read(directory: &Path) -> Self {
        let certificate = CertificateDer::from_pem_file(directory.join("server.crt")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).expect("a key");
        Self { certificate, key }
    }

    pub fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_der())
    }

    /// What shows it to whoever connects, and wants to see a certificate of `clients`, if they are given.
    pub fn acceptor(&self, clients: Option<&CertificateAuthority>) -> TlsAcceptor {
        let provider = Arc::new(default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions");
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                let root = CertificateDer::from_pem_file(clients.bundle()).expect("a certificate");
                roots.add(root).expect("a root");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                config.with_client_cert_verifier(verifier.expect("a verifier"))
            }
        };
        let config = config
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .expect("a certificate with its key");
        TlsAcceptor::from(Arc::new(config))
    }
}
