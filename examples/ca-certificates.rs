//! Writes the certificate authorities that the container image trusts to standard output, in PEM.
//!
//! They are Mozilla's, out of the crate `webpki-root-certs`, whose version `Cargo.lock` pins. So an image is the same
//! wherever it is built, and an authority that somebody has added to the machine that builds it is not in it.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

/// What the licence of the data asks for. Readers of PEM pass over it.
const HEADER: &str = "\
# Certificate authorities that Mozilla trusts for TLS servers, from the crate webpki-root-certs.
# Licence of the data: CDLA-Permissive-2.0, https://cdla.dev/permissive-2-0/
";

/// Characters of a line: RFC 7468, section 2.
const LINE: usize = 64;

fn main() -> std::io::Result<()> {
    let mut pem = String::from(HEADER);
    for certificate in TLS_SERVER_ROOT_CERTS {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(LINE));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    std::io::stdout().write_all(pem.as_bytes())
}
