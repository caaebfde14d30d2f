//! Any bytes as a compressed stream, in one piece and in small ones: the same comes out, or an error both times.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ocivol::unpack::decompress::{Buffer, Decoder, Piece};

/// What is kept of the output; more is only counted.
const KEPT: usize = 4 << 20;

fn decode(bytes: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let mut decoder = Decoder::default();
    decoder.allow_large_window();
    let mut buffer = Buffer::new(4096);
    let mut out = Vec::new();
    let mut total = 0;
    let mut emit = |piece: Piece<'_>| {
        let content = match &piece {
            Piece::Buffer(buffer) => buffer.content(),
            Piece::Shared(bytes) => bytes,
        };
        total += content.len();
        out.extend_from_slice(&content[..content.len().min(KEPT - out.len())]);
        if let Piece::Buffer(buffer) = piece {
            buffer.clear();
        }
        Ok(())
    };
    for piece in bytes.chunks(step) {
        decoder.push(Bytes::copy_from_slice(piece), &mut buffer, &mut emit).ok()?;
    }
    decoder.finish(&mut buffer, &mut emit).ok()?;
    Some((out, total))
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    if bytes.len() < 20_000 {
        assert!(whole == decode(bytes, 3), "pieces make a difference");
    }
});
