//! Any bytes as a client's frames, in one piece and in small ones: the same comes out, or an error both times, and what
//! holds no headers comes out as it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocivol::csi::authority::field_block::Error;
use ocivol::csi::authority::rewriter::Rewriter;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What one call may write: what waits, a block that has grown to its limit, and one field more.
const MOST_AT_ONCE: usize = 128 * 1024;

/// What comes out, up to an error, and the error.
fn rewrite(bytes: &[u8], step: usize) -> (Vec<u8>, Option<Error>) {
    let mut rewriter = Rewriter::new("localhost");
    let mut all = Vec::new();
    for piece in [PREFACE, bytes].concat().chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let mut output = Vec::new();
            let result = rewriter.feed(rest, &mut output);
            assert!(output.len() <= piece.len() + MOST_AT_ONCE, "{} bytes at once", output.len());
            all.extend(output);
            match result {
                Ok(taken) => rest = &rest[taken..],
                Err(error) => return (all, Some(error)),
            }
        }
    }
    (all.split_off(PREFACE.len()), None)
}

/// The frames apart from HEADERS and CONTINUATION; the last one may be incomplete.
fn others(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let (frame, rest) = bytes.split_at(bytes.len().min(9 + length));
        if !matches!(frame[3], 1 | 9) {
            frames.push(frame);
        }
        bytes = rest;
    }
    frames
}

fuzz_target!(|bytes: &[u8]| {
    let (whole, error) = rewrite(bytes, usize::MAX);
    for step in [1, 7] {
        let (pieces, error_of_pieces) = rewrite(bytes, step);
        assert_eq!(error, error_of_pieces, "pieces of {step} make a difference");
        assert!(error.is_some() || whole == pieces, "pieces of {step} make a difference");
    }
    if error.is_none() {
        assert_eq!(others(bytes), others(&whole), "a frame was changed that should pass");
        // What was rewritten says the same when it is rewritten again.
        assert_eq!(rewrite(&whole, usize::MAX), (whole, None));
    }
});
