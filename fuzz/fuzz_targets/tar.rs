//! Any bytes as a tar archive.
//!
//! Errors are fine, panics are bugs. What is read must have been there: no entry has more content than the input,
//! and small steps read the same as one large one. The crates `tar` and `tar-core` read the same entries where they accept an
//! archive that ocivol accepts; `tests/support/oracles.rs` says what they are known to read in their own way.
#![no_main]

#[path = "../../tests/support/oracles.rs"]
#[allow(dead_code)]
mod oracles;

use std::io::{BufReader, Read};

use libfuzzer_sys::fuzz_target;
use ocivol::unpack::tar::{Archive, Header};

type Listing = (Vec<(Header, u64)>, bool);

fn list(input: impl std::io::BufRead) -> Listing {
    let mut archive = Archive::new(input);
    let mut entries = Vec::new();
    loop {
        match archive.next_entry() {
            Ok(None) => return (entries, true),
            Err(_) => return (entries, false),
            Ok(Some(header)) => {
                let mut read = 0;
                loop {
                    match archive.content().map(<[u8]>::len) {
                        Ok(0) => break,
                        Ok(length) => {
                            read += length as u64;
                            archive.consume(length);
                        }
                        Err(_) => return (entries, false),
                    }
                }
                let pieces: u64 = header.map.pieces().map(|(_, length)| length).sum();
                assert!(read == pieces && read <= header.size);
                entries.push((header, read));
            }
        }
    }
}

/// Bytes in pieces of seven.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let length = out.len().min(7);
        self.0.read(&mut out[..length])
    }
}

/// The same bytes with right checksums in what looks like a header, or hardly any change to one would be looked at.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        let mut header = tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
    bytes
}

fn check(bytes: &[u8]) {
    let whole = list(bytes);
    let content: u64 = whole.0.iter().map(|(_, read)| *read).sum();
    assert!(content <= bytes.len() as u64);
    assert_eq!(whole, list(BufReader::with_capacity(64, Slow(bytes))));
    if let Some(difference) = oracles::difference(bytes) {
        panic!("{difference}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&repaired(bytes));
});
