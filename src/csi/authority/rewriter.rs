//! Between a unix socket and tonic: whatever a client says its `:authority` is, tonic reads `localhost`.
//!
//! kubelet's plugin watcher dials the registration socket by its path, and grpc-go makes an authority of that:
//! `%2Fvar%2Flib%2Fkubelet%2F…`, before 1.57 the path itself. So do gRPC's C core (Python, C++) and grpc-java on any unix
//! socket. No such name is a host: the `h2` crate below tonic resets the stream with PROTOCOL_ERROR, and nobody is
//! ever registered (hyperium/h2 #345 and #487, grpc/grpc #38142; kubernetes #112597 made kubelet send `localhost` to CSI
//! sockets, not to the watched ones). On a unix socket the authority tells nothing: who listens is who was dialed.
//!
//! So the HTTP/2 frames that the client sends (RFC 9113) are looked at. All pass as they are and as they come, apart
//! from the field blocks of HEADERS and CONTINUATION, which [`field_block`](crate::csi::authority::field_block) writes again. What the server sends
//! is not touched. A client that breaks the rules, or a bound, is disconnected.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use crate::csi::authority::field_block::{COMPRESSED_LIMIT, Error, Recoder};

/// Bytes in a frame, as long as the peer has not announced more (RFC 9113, section 4.2). tonic's server does not.
const FRAME_LIMIT: usize = 16 * 1024;
/// Nothing more is rewritten while so many bytes wait to go on.
const OUTPUT_LIMIT: usize = 16 * 1024;

/// `PRI * HTTP/2.0…` (RFC 9113, section 3.4). The server reads it; here it only passes.
const PREFACE_LENGTH: usize = 24;
const FRAME_HEADER_LENGTH: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Of the priority in a HEADERS frame (RFC 9113, section 6.2).
const PRIORITY_LENGTH: usize = 5;

/// One direction of a connection, from the client's first byte.
#[derive(Debug)]
pub struct Rewriter {
    part: Part,
    /// How many bytes of this part have not come yet.
    missing: usize,
    /// What has come of a frame's header.
    header: Vec<u8>,
    /// What has come of a field block.
    block: Vec<u8>,
    /// The HEADERS frame whose field block is coming.
    open: Option<Headers>,
    recoder: Recoder,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// The preface, or the payload of a frame that is not changed.
    Passing,
    FrameHeader,
    /// The payload of HEADERS or CONTINUATION.
    Fields,
}

/// A HEADERS frame (RFC 9113, section 6.2), without its padding.
#[derive(Debug)]
struct Headers {
    stream: [u8; 4],
    flags: u8,
    priority: Vec<u8>,
    /// END_HEADERS came, of HEADERS or of CONTINUATION.
    complete: bool,
}

impl Rewriter {
    /// Every `:authority` gets this value.
    pub fn new(authority: &str) -> Self {
        Self {
            part: Part::Passing,
            missing: PREFACE_LENGTH,
            header: Vec::with_capacity(FRAME_HEADER_LENGTH),
            block: Vec::new(),
            open: None,
            recoder: Recoder::new(authority),
        }
    }

    /// Takes bytes from the front of `input`, appends what goes on to `output`, and returns how many it took. It takes
    /// all, unless `output` has become so long that it should go on first.
    ///
    /// # Errors
    /// When this is not HTTP/2, or breaks a bound. Nothing can follow.
    pub fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Error> {
        let mut rest = input;
        while !rest.is_empty() && output.len() < OUTPUT_LIMIT {
            let (piece, after) = rest.split_at(rest.len().min(self.missing));
            rest = after;
            self.missing -= piece.len();
            match self.part {
                Part::Passing => output.extend_from_slice(piece),
                Part::FrameHeader => self.header.extend_from_slice(piece),
                Part::Fields => self.block.extend_from_slice(piece),
            }
            while self.missing == 0 {
                self.end_of_part(output)?;
            }
        }
        Ok(input.len() - rest.len())
    }

    fn end_of_part(&mut self, output: &mut Vec<u8>) -> Result<(), Error> {
        if let Part::FrameHeader = self.part {
            return self.begin_frame(output);
        }
        if let Part::Fields = self.part {
            self.end_fields(output)?;
        }
        self.part = Part::FrameHeader;
        self.missing = FRAME_HEADER_LENGTH;
        self.header.clear();
        Ok(())
    }

    fn begin_frame(&mut self, output: &mut Vec<u8>) -> Result<(), Error> {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header[..] else {
            return Err(Error::Frame("a frame's header is incomplete")); // It has come.
        };
        self.missing = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        // The highest bit is reserved (RFC 9113, section 4.1).
        let stream = [s0 & 0x7f, s1, s2, s3];
        self.part = Part::Fields;
        match (&mut self.open, kind) {
            (None, HEADERS) => {
                let complete = flags & END_HEADERS != 0;
                self.open = Some(Headers { stream, flags, priority: Vec::new(), complete });
                // Padding, which may be added to a block of any length, is not counted there.
                if self.missing > FRAME_LIMIT {
                    return Err(Error::Frame("a HEADERS frame is too long"));
                }
            }
            (Some(open), CONTINUATION) if open.stream == stream => {
                open.complete = flags & END_HEADERS != 0;
                if self.block.len() + self.missing > COMPRESSED_LIMIT {
                    return Err(Error::TooLarge);
                }
            }
            (Some(_), _) | (None, CONTINUATION) => {
                return Err(Error::Frame("a field block is interrupted or has no beginning"));
            }
            (None, _) => {
                self.part = Part::Passing;
                output.extend_from_slice(&self.header);
            }
        }
        Ok(())
    }

    fn end_fields(&mut self, output: &mut Vec<u8>) -> Result<(), Error> {
        let Some(mut headers) = self.open.take() else { return Ok(()) };
        if self.header.get(3) == Some(&HEADERS) {
            let mut rest = &self.block[..];
            let padding = if headers.flags & PADDED != 0 { take(&mut rest, 1)? } else { &[] };
            if headers.flags & PRIORITY != 0 {
                headers.priority = take(&mut rest, PRIORITY_LENGTH)?.to_vec();
            }
            let padding = padding.first().map_or(0, |length| usize::from(*length));
            let fields = rest.len().checked_sub(padding).ok_or(CUT_SHORT)?;
            self.block = take(&mut rest, fields)?.to_vec();
        }
        if !headers.complete {
            self.open = Some(headers);
            return Ok(());
        }
        let mut fields = Vec::new();
        self.recoder.recode(&self.block, &mut fields)?;
        self.block.clear();
        headers.write(&fields, output);
        Ok(())
    }
}

impl Headers {
    /// Writes HEADERS and, if that is full, CONTINUATION (RFC 9113, section 6.10).
    fn write(&self, fields: &[u8], output: &mut Vec<u8>) {
        let room = FRAME_LIMIT - self.priority.len();
        let (first, mut rest) = fields.split_at(fields.len().min(room));
        let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
        let kept = self.flags & !(PADDED | END_HEADERS);
        self.write_frame_header(HEADERS, kept | end(rest), self.priority.len() + first.len(), output);
        output.extend_from_slice(&self.priority);
        output.extend_from_slice(first);
        while !rest.is_empty() {
            let (next, after) = rest.split_at(rest.len().min(FRAME_LIMIT));
            rest = after;
            self.write_frame_header(CONTINUATION, end(rest), next.len(), output);
            output.extend_from_slice(next);
        }
    }

    fn write_frame_header(&self, kind: u8, flags: u8, length: usize, output: &mut Vec<u8>) {
        let [l0, l1, l2, ..] = length.to_le_bytes();
        output.extend_from_slice(&[l2, l1, l0, kind, flags]);
        output.extend_from_slice(&self.stream);
    }
}

const CUT_SHORT: Error = Error::Frame("a HEADERS frame is too short for its padding and priority");

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Error> {
    let (taken, after) = rest.split_at_checked(length).ok_or(CUT_SHORT)?;
    *rest = after;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::authority::field_block::BLOCK_LIMIT;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const LOCALHOST: &[u8] = b"\x01\x09localhost";
    const END_STREAM: u8 = 0x1;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [.., l0, l1, l2] = payload.len().to_be_bytes();
        [&[l0, l1, l2, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// What becomes of these frames after a preface, fed in pieces of `step` bytes.
    fn rewrite(frames: &[&[u8]], step: usize) -> Result<Vec<u8>, Error> {
        let mut rewriter = Rewriter::new("localhost");
        let mut all = Vec::new();
        for piece in [&[PREFACE], frames].concat().concat().chunks(step) {
            let mut rest = piece;
            while !rest.is_empty() {
                let mut output = Vec::new();
                let taken = rewriter.feed(rest, &mut output)?;
                assert!(output.len() < OUTPUT_LIMIT + piece.len() + BLOCK_LIMIT + 100, "{}", output.len());
                rest = &rest[taken..];
                all.extend(output);
            }
        }
        Ok(all.strip_prefix(PREFACE).expect("the preface").to_vec())
    }

    fn whole(frames: &[&[u8]]) -> Result<Vec<u8>, Error> {
        rewrite(frames, usize::MAX)
    }

    #[test]
    fn the_authority_is_replaced_wherever_the_bytes_are_cut() {
        let settings = frame(0x4, 0, &[]);
        let block = b"\x83\x86\x41\x03%2F\x40\x01a\x01b";
        let padded = [&[3], &b"\x80\0\0\0\x10"[..], &block[..5], b"\0\0\0"].concat();
        let first = [
            frame(HEADERS, PADDED | PRIORITY, &padded),
            frame(CONTINUATION, 0, &[]),
            frame(CONTINUATION, END_HEADERS, &block[5..]),
        ];
        let data = frame(0x0, 0, &[7; 3000]);
        // It refers to the one before: the authority is 63, and `a: b` is 62.
        let second = frame(HEADERS, END_HEADERS | END_STREAM, b"\x83\xbf\xbe");
        let ping = frame(0x6, 0, &[1; 8]);
        let frames = [&settings[..], &first.concat(), &data, &second, &ping];

        let fields = [b"\x83\x86", LOCALHOST, b"\0\x01a\x01b"].concat();
        let expected = [
            settings.clone(),
            frame(HEADERS, PRIORITY | END_HEADERS, &[b"\x80\0\0\0\x10", &fields[..]].concat()),
            data.clone(),
            frame(HEADERS, END_HEADERS | END_STREAM, &[b"\x83", LOCALHOST, b"\0\x01a\x01b"].concat()),
            ping.clone(),
        ];
        for step in [1, 2, 3, 5, 7, 11, 4096, usize::MAX] {
            assert_eq!(rewrite(&frames, step).as_deref(), Ok(&expected.concat()[..]), "in pieces of {step}");
        }
        let total = PREFACE.len() + frames.concat().len();
        for cut in 1..total.min(400) {
            assert_eq!(rewrite(&frames, cut).as_deref(), Ok(&expected.concat()[..]), "in pieces of {cut}");
        }
    }

    #[test]
    fn trailers_and_requests_without_an_authority_stay_as_they_are() {
        let frames =
            [frame(HEADERS, END_HEADERS, b"\x83\x86\x84"), frame(HEADERS, 0x5, b"\x00\x01a\x01b")].concat();
        assert_eq!(whole(&[&frames]).as_deref(), Ok(&frames[..]));
    }

    #[test]
    fn a_frame_passes_before_it_is_complete() {
        let mut rewriter = Rewriter::new("localhost");
        let mut output = Vec::new();
        let begun = [PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &[7; 100]].concat();
        assert_eq!(rewriter.feed(&begun, &mut output), Ok(begun.len()));
        assert_eq!(output, begun);
    }

    #[test]
    fn a_block_that_grows_is_split() {
        let entry = [&b"\x40\x01a\x7f\xa1\x1e"[..], &[b'x'; 4000]].concat();
        let first = frame(HEADERS, END_HEADERS, &entry);
        let second = frame(HEADERS, END_HEADERS | END_STREAM | PRIORITY, &[&[0; 5][..], &[0xbe; 9]].concat());
        let output = whole(&[&first, &second]).expect("within the bounds");
        let mut rest = &output[FRAME_HEADER_LENGTH + entry.len()..];
        let mut block = Vec::new();
        for (kind, flags, length) in [
            (HEADERS, END_STREAM | PRIORITY, 16384),
            (CONTINUATION, 0, 16384),
            (CONTINUATION, END_HEADERS, 3291),
        ] {
            let expected = frame(kind, flags, &rest[FRAME_HEADER_LENGTH..][..length]);
            assert_eq!(&rest[..expected.len()], expected);
            block.extend_from_slice(&expected[FRAME_HEADER_LENGTH..]);
            rest = &rest[expected.len()..];
        }
        assert!(rest.is_empty());
        let field = [&b"\0"[..], &entry[1..]].concat();
        assert_eq!(block, [&[0; 5][..], &field.repeat(9)].concat());
    }

    #[test]
    fn many_blocks_that_grow_wait_for_each_other() {
        let entry = [&b"\x40\x01a\x7f\xa1\x1e"[..], &[b'x'; 4000]].concat();
        let mut frames = vec![frame(HEADERS, END_HEADERS, &entry)];
        frames.resize(200, frame(HEADERS, END_HEADERS, &[0xbe; 16]));
        let output = whole(&[&frames.concat()]).expect("within the bounds"); // `rewrite` looks at the pieces.
        assert!(output.len() > 199 * 16 * entry.len());
    }

    #[test]
    fn frames_out_of_order_and_beyond_the_bounds_are_refused() {
        let open = frame(HEADERS, 0, b"\x83");
        let mut other_stream = frame(CONTINUATION, END_HEADERS, b"\x83");
        other_stream[8] = 3;
        let large = frame(HEADERS, 0, &[0x83; FRAME_LIMIT]);
        let refused = |frames: &[&[u8]]| whole(frames).expect_err("refused");
        for frames in [
            &[&open[..], &frame(0x0, 0, &[])][..],
            &[&open, &open],
            &[&open, &other_stream],
            &[&frame(CONTINUATION, END_HEADERS, b"\x83")],
            &[&frame(HEADERS, END_HEADERS | PADDED, b"\x02\x83")],
            &[&frame(HEADERS, END_HEADERS | PADDED, &[])],
            &[&frame(HEADERS, END_HEADERS | PRIORITY, &[0; 4])],
            &[&frame(HEADERS, END_HEADERS, &[0x83; FRAME_LIMIT + 1])],
        ] {
            assert!(matches!(refused(frames), Error::Frame(_)), "{frames:02x?}");
        }
        assert_eq!(refused(&[&large, &frame(CONTINUATION, END_HEADERS, b"\x83")]), Error::TooLarge);
        assert!(matches!(refused(&[&frame(HEADERS, END_HEADERS, b"\x80")]), Error::FieldBlock(_)));
    }
}
