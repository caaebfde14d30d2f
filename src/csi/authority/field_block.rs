//! Field blocks of HTTP/2 (HPACK, RFC 7541), written again without the dynamic table and with another `:authority`.
//!
//! What a client's encoder put into its dynamic table is kept here and written out wherever the client refers to it, so
//! that the reader's table stays empty. Names and values are copied as they are coded: nothing is decompressed, and of
//! a string only the length is worked out, because the table's size counts it (RFC 7541, section 4.1).
//!
//! There are crates for HPACK. They decode, which is more than is needed here, and have faults that a socket must not have:
//! httlib-hpack 0.1 panics at a block that is cut short; loona-hpack 0.4 builds a table of 257 symbols anew for every
//! string, and lets the table's size change anywhere.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::VecDeque;

/// Bytes of one field block as it comes. hyper refuses lists of fields that have more when they are decompressed.
pub(in crate::csi::authority) const COMPRESSED_LIMIT: usize = 16 * 1024;
/// Bytes of one field block as it goes on: references to the dynamic table become what they refer to.
pub(in crate::csi::authority) const BLOCK_LIMIT: usize = 64 * 1024;
/// Why a connection ends. No header is quoted: it can hold a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The frames are not as RFC 9113 has them.
    #[error("not HTTP/2: {0}")]
    Frame(&'static str),
    /// The field blocks are not as RFC 7541 has them.
    #[error("not HPACK: {0}")]
    FieldBlock(&'static str),
    /// A client sends kilobytes of headers.
    #[error("the headers of a request exceed {COMPRESSED_LIMIT} bytes, or {BLOCK_LIMIT} uncompressed")]
    TooLarge,
}

/// Bytes of the dynamic table while nobody announces SETTINGS_HEADER_TABLE_SIZE (RFC 9113, section 6.5.2), which
/// tonic's servers do not.
const TABLE_LIMIT: usize = 4096;
/// What an entry counts beside its name and value (RFC 7541, section 4.1).
const ENTRY_OVERHEAD: usize = 32;
/// The static table's index of `:authority`.
const AUTHORITY: usize = 1;

/// The names of the static table, from index 1 (RFC 7541, appendix A).
const STATIC_NAMES: &str = ":authority :method :method :path :path :scheme :scheme :status :status :status :status \
    :status :status :status accept-charset accept-encoding accept-language accept-ranges accept \
    access-control-allow-origin age allow authorization cache-control content-disposition content-encoding \
    content-language content-length content-location content-range content-type cookie date etag expect expires from \
    host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified link location \
    max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie \
    strict-transport-security transfer-encoding user-agent vary via www-authenticate";
const STATIC_ENTRIES: usize = 61;

/// `:authority` as a string literal, plain and in Huffman code.
const AUTHORITY_LITERALS: [&[u8]; 2] = [b"\x0a:authority", b"\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f"];

/// The Huffman code (RFC 7541, appendix B) is canonical: codes of a length follow each other, and longer ones follow
/// shorter ones. So the length of each symbol is known from the last code of each length.
const LAST_CODES: [(u32, u64); 21] = [
    (5, 0x9),
    (6, 0x2d),
    (7, 0x7b),
    (8, 0xfd),
    (10, 0x3fc),
    (11, 0x7fc),
    (12, 0xffb),
    (13, 0x1ffd),
    (14, 0x3ffd),
    (15, 0x7ffe),
    (19, 0x7_fff2),
    (20, 0xf_ffed),
    (21, 0x1f_ffe8),
    (22, 0x3f_ffeb),
    (23, 0x7f_fff4),
    (24, 0xff_fff5),
    (25, 0x1ff_ffef),
    (26, 0x3ff_ffee),
    (27, 0x7ff_fff0),
    (28, 0xfff_fffe),
    // The last of 30 bits, 0x3fffffff, is EOS, which no string may contain.
    (30, 0x3fff_fffe),
];

/// The state of one direction of a connection.
#[derive(Debug)]
pub struct Recoder {
    /// `:authority` with its new value, as a field line.
    authority: Vec<u8>,
    /// The dynamic table, newest entry first.
    table: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    value: Vec<u8>,
    size: usize,
}

#[derive(Debug, Clone)]
struct Name {
    /// As a literal without indexing begins: an index of the static table, or zero and a string literal.
    coded: Vec<u8>,
    length: usize,
}

/// A string literal (RFC 7541, section 5.2).
struct Text<'a> {
    coded: &'a [u8],
    length: usize,
}

impl Recoder {
    /// Nothing was read yet; `authority` will be the value of every `:authority`.
    pub fn new(authority: &str) -> Self {
        let mut field = Vec::new();
        put_integer(&mut field, 0, 4, AUTHORITY);
        put_integer(&mut field, 0, 7, authority.len());
        field.extend_from_slice(authority.as_bytes());
        Self { authority: field, table: VecDeque::new(), size: 0, limit: TABLE_LIMIT }
    }

    /// Appends what `block` says to `output`, which stays within 64 KiB.
    ///
    /// # Errors
    /// When the block is malformed or grows too large. The table is then not the client's any more.
    pub fn recode(&mut self, block: &[u8], output: &mut Vec<u8>) -> Result<(), Error> {
        let limit = output.len() + BLOCK_LIMIT;
        let mut rest = block;
        let mut has_fields = false;
        while let Some(&first) = rest.first() {
            // The patterns of RFC 7541, section 6.
            if first & 0b1110_0000 == 0b0010_0000 {
                if has_fields {
                    return Err(Error::FieldBlock("the table's size changes after a field"));
                }
                let size = take_integer(&mut rest, 5)?;
                self.resize(size)?;
                continue;
            }
            has_fields = true;
            if first & 0b1000_0000 != 0 {
                let index = take_integer(&mut rest, 7)?;
                if index == 0 {
                    return Err(Error::FieldBlock("index 0"));
                } else if index == AUTHORITY {
                    output.extend_from_slice(&self.authority);
                } else if index <= STATIC_ENTRIES {
                    output.push(first); // The static table is everybody's.
                } else {
                    let entry = self.entry(index)?;
                    self.write(&entry.name, &entry.value, 0, output);
                }
            } else {
                let indexed = first & 0b0100_0000 != 0;
                let name = self.take_name(&mut rest, if indexed { 6 } else { 4 })?;
                let value = take_text(&mut rest)?;
                // Who may not index a field must be told again (RFC 7541, section 7.1.3).
                let never_indexed = if indexed { 0 } else { first & 0b0001_0000 };
                self.write(&name, value.coded, never_indexed, output);
                if indexed {
                    self.insert(name, &value);
                }
            }
            if output.len() > limit {
                return Err(Error::TooLarge);
            }
        }
        Ok(())
    }

    /// Writes a literal that nobody puts into a table.
    fn write(&self, name: &Name, value: &[u8], never_indexed: u8, output: &mut Vec<u8>) {
        match name.coded.split_first() {
            Some((0, literal)) if AUTHORITY_LITERALS.contains(&literal) => {
                output.extend_from_slice(&self.authority);
            }
            Some((1, [])) => output.extend_from_slice(&self.authority),
            Some((first, more)) => {
                output.push(first | never_indexed);
                output.extend_from_slice(more);
                output.extend_from_slice(value);
            }
            None => {}
        }
    }

    fn take_name(&self, rest: &mut &[u8], prefix: u32) -> Result<Name, Error> {
        let index = take_integer(rest, prefix)?;
        let mut coded = Vec::new();
        if index == 0 {
            let text = take_text(rest)?;
            coded.push(0);
            coded.extend_from_slice(text.coded);
            Ok(Name { coded, length: text.length })
        } else if let Some(name) = STATIC_NAMES.split_ascii_whitespace().nth(index - 1) {
            put_integer(&mut coded, 0, 4, index);
            Ok(Name { coded, length: name.len() })
        } else {
            self.entry(index).map(|entry| entry.name.clone())
        }
    }

    fn entry(&self, index: usize) -> Result<&Entry, Error> {
        let position = index.checked_sub(STATIC_ENTRIES + 1);
        let entry = position.and_then(|position| self.table.get(position));
        entry.ok_or(Error::FieldBlock("an index that is not in the table"))
    }

    /// An entry larger than the table empties it (RFC 7541, section 4.4).
    fn insert(&mut self, name: Name, value: &Text<'_>) {
        let size = name.length + value.length + ENTRY_OVERHEAD;
        self.evict(self.limit.saturating_sub(size));
        if size <= self.limit {
            self.size += size;
            self.table.push_front(Entry { name, value: value.coded.to_vec(), size });
        }
    }

    fn resize(&mut self, limit: usize) -> Result<(), Error> {
        if limit > TABLE_LIMIT {
            return Err(Error::FieldBlock("a table larger than allowed"));
        }
        self.limit = limit;
        self.evict(limit);
        Ok(())
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// An integer behind a prefix of that many bits (RFC 7541, section 5.1).
fn take_integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Error> {
    let mut next = || {
        let (&byte, after) = rest.split_first().ok_or(Error::FieldBlock("it is cut short"))?;
        *rest = after;
        Ok::<_, Error>(usize::from(byte))
    };
    let most = (1 << prefix) - 1;
    let mut value = next()? & most;
    if value < most {
        return Ok(value);
    }
    // Three bytes more hold all that can be meant, and no zeros in front are needed.
    for shift in [0, 7, 14] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::FieldBlock("a number is too large"))
}

fn put_integer(output: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let most = (1 << prefix) - 1;
    let mut rest = value;
    if rest < most {
        output.push(pattern | low_byte(rest));
        return;
    }
    output.push(pattern | low_byte(most));
    rest -= most;
    while rest > 0x7f {
        output.push(low_byte(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    output.push(low_byte(rest));
}

fn low_byte(value: usize) -> u8 {
    value.to_le_bytes()[0]
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<Text<'a>, Error> {
    let whole = *rest;
    let huffman = whole.first().is_some_and(|first| first & 0x80 != 0);
    let length = take_integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length).ok_or(Error::FieldBlock("it is cut short"))?;
    *rest = after;
    let coded = whole.get(..whole.len() - after.len()).unwrap_or_default();
    let length = if huffman {
        huffman_length(text).ok_or(Error::FieldBlock("a string is not in Huffman code"))?
    } else {
        length
    };
    Ok(Text { coded, length })
}

/// How many bytes a string in Huffman code stands for.
fn huffman_length(coded: &[u8]) -> Option<usize> {
    let mut bytes = coded.iter();
    // The bits that were not looked at yet, from the top; below them are zeros.
    let (mut bits, mut have) = (0_u64, 0_u32);
    let mut length = 0;
    loop {
        while have <= 56
            && let Some(&byte) = bytes.next()
        {
            bits |= u64::from(byte) << (56 - have);
            have += 8;
        }
        let (symbol, _) = *LAST_CODES.iter().find(|(symbol, last)| bits >> (64 - symbol) <= *last)?;
        if symbol > have {
            // Less than a byte of the beginning of EOS, all ones, fills the last byte (RFC 7541, section 5.2).
            let padded = have < 8 && bits == !(u64::MAX >> have);
            return padded.then_some(length);
        }
        bits <<= symbol;
        have -= symbol;
        length += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `:authority: localhost`, as it is written.
    const LOCALHOST: &[u8] = b"\x01\x09localhost";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex");
        digits.chunks(2).map(byte).collect()
    }

    fn recode(recoder: &mut Recoder, block: &[u8]) -> Result<Vec<u8>, Error> {
        let mut output = Vec::new();
        recoder.recode(block, &mut output).map(|()| output)
    }

    fn once(block: &[u8]) -> Result<Vec<u8>, Error> {
        recode(&mut Recoder::new("localhost"), block)
    }

    #[test]
    fn three_requests_of_the_rfc() {
        // RFC 7541, appendix C.4: Huffman code, and each request refers to the ones before.
        let mut recoder = Recoder::new("localhost");
        let mut next = |block: &str| recode(&mut recoder, &bytes(block)).expect("as the RFC has it");
        let pseudo = |path: u8, scheme: u8| [&[0x82, scheme, path], LOCALHOST].concat();
        assert_eq!(next("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"), pseudo(0x84, 0x86));
        let no_cache = bytes("0f09 86a8 eb10 649c bf");
        assert_eq!(next("8286 84be 5886 a8eb 1064 9cbf"), [pseudo(0x84, 0x86), no_cache].concat());
        let custom = bytes("00 8825 a849 e95b a97d 7f89 25a8 49e9 5bb8 e8b4 bf");
        let expected = [pseudo(0x85, 0x87), custom].concat();
        assert_eq!(next("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"), expected);
        assert_eq!(recoder.size, 164, "as C.4.3 says");
    }

    #[test]
    fn three_responses_of_the_rfc_fill_a_small_table() {
        // RFC 7541, appendix C.6: a table of 256 bytes, which the first block is made to ask for.
        let mut recoder = Recoder::new("localhost");
        let mut next = |block: &str| recode(&mut recoder, &bytes(block)).expect("as the RFC has it");
        let date_1 = "6196 d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff";
        let location = "6e91 9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3";
        next(&format!("3fe1 01 4882 6402 5885 aec3 771a 4b {date_1} {location}"));
        // Only the status changed; it evicts the one before.
        let written = next("4883 640e ffc1 c0bf");
        let rest = "0f09 85aec3 771a4b 0f12 96d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff \
                    0f1f 919d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3";
        assert_eq!(written, [bytes("08 83640e ff"), bytes(rest)].concat());
        next(
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 \
             e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        );
        assert_eq!((recoder.size, recoder.table.len()), (215, 3), "as C.6.3 says");
    }

    #[test]
    fn every_symbol_of_the_huffman_code_is_known() {
        // All bytes from 0 to 255, as golang.org/x/net/http2/hpack codes them.
        let all = bytes(
            "ffc7fffd8fffffe2fffffe3fffffe4fffffe5fffffe6fffffe7fffffe8ffffeafffffff3fffffa7fffffabffffffdfffffebfffffecff\
             fffedfffffeefffffefffffff0ffffff1ffffff2fffffffbfffffcffffffd3fffffd7fffffdbfffffdffffffe3fffffe7fffffebfffff\
             ed4fe3f9ffaffcabf1febfafefe7fdfd2cbb00089969b71d79fb9f7fff20ffbff3ff50ddbd7f061c58f265cd9f469d5af66dddbf871e5\
             f9cff7ff7fffc3ff9ffe45fff4719242cb34e6e9d68a6a3d7dac426defe3cfaf7fffbfe7ffbffdffffffcfffe6ffff4bfff9ffffa3fff\
             d3ffff53fffd5ffffb3fffeb7fffdaffffb7ffff73fffeeffffdeffffebffffbfffffd9ffffdbfffebffffe0ffffeeffffc3ffff8bfff\
             f1ffffe4fffee7fffb1ffff97fffd9ffffcdffff9fffffbffffdafffeeffff4ffffb7fffee7fffe8ffffd3fffdeffffd5fffeeffffbdf\
             fffe1fffdfffff7fffff5ffffecffff07fff87fffe0ffff17fffedffff87ffff77fffeffffeaffff8bfffe3ffff93ffff87fffcbffff3\
             7ffff1fffff83ffffe1fffebfffe3ffff3fffff2ffffa3ffffd9fffff17ffffc7fffff27ffffdefffffbffffff2fffff8fffffb7fff97\
             fff8fffffe6fffffc1fffff87ffffe7fffffc5ffffe5fffe4ffff2fffffd1fffff4ffffffefffffe3fffffc9fffff97fffb3ffffcffff\
             b7fffcdffff4ffff9ffffd1ffffcffffeaffffafffffddffffeffffff4fffff5fffffabffffa7ffffd7fffff9bffffecfffffb7fffff3\
             fffffe8fffffd3fffffabfffff5fffffff7ffffecfffffdbfffffbbfffff7ffffff0fffffbbf",
        );
        assert_eq!(huffman_length(&all), Some(256));
        assert_eq!(huffman_length(&[]), Some(0));
        assert_eq!(huffman_length(&[0x07]), Some(1), "a zero and three ones: padding");
        assert_eq!(huffman_length(&[0x00]), None, "padding is ones");
        assert_eq!(huffman_length(&[0x07, 0xff]), None, "padding is less than a byte");
        assert_eq!(huffman_length(&[0xff; 4]), None, "EOS");
        assert_eq!(STATIC_NAMES.split_ascii_whitespace().count(), STATIC_ENTRIES);
    }

    #[test]
    fn every_way_to_write_an_authority_is_found() {
        for block in [
            &b"\x81"[..],                                    // Indexed, and empty.
            b"\x41\x01x",                                    // Its name indexed; to be indexed,
            b"\x01\x01x",                                    // not to be indexed,
            b"\x11\x01x",                                    // never.
            b"\x40\x0a:authority\x01x",                      // Its name a literal,
            b"\x00\x88\xb8\x3b\x53\x39\xec\x32\x7d\x7f\x00", // in Huffman code.
        ] {
            assert_eq!(once(block).as_deref(), Ok(LOCALHOST), "{block:02x?}");
        }
        let by_reference = [&b"\x40\x0a:authority\x01x"[..], b"\xbe", b"\x7e\x01y", b"\xbe"].concat();
        assert_eq!(once(&by_reference), Ok(LOCALHOST.repeat(4)));
        assert_eq!(once(b"\x83").as_deref(), Ok(&b"\x83"[..]), "none is made where there is none");
    }

    #[test]
    fn what_must_not_be_indexed_is_written_so() {
        assert_eq!(once(b"\x1f\x08\x03abc").as_deref(), Ok(&b"\x1f\x08\x03abc"[..]), "authorization");
        let by_reference = once(b"\x40\x01a\x01b\x1f\x2f\x01c").expect("well-formed");
        assert_eq!(by_reference, b"\x00\x01a\x01b\x10\x01a\x01c");
    }

    #[test]
    fn the_table_changes_its_size_only_where_it_may() {
        let mut recoder = Recoder::new("localhost");
        assert_eq!(recode(&mut recoder, b"\x40\x01a\x01b\xbe").map(|written| written.len()), Ok(10));
        // Emptied, and as large as before; nothing of that is written.
        assert_eq!(recode(&mut recoder, b"\x20\x3f\xe1\x1f\x83").as_deref(), Ok(&b"\x83"[..]));
        assert!(recode(&mut recoder, b"\xbe").is_err(), "it is empty");
        assert!(once(b"\x3f\xe2\x1f").is_err(), "4097");
        assert!(once(b"\x83\x20").is_err(), "after a field");
        let mut recoder = Recoder::new("localhost");
        let large = [&b"\x40\x01a\x7f\xe0\x1e"[..], &[b'x'; 127 + 3936]].concat();
        recode(&mut recoder, &large).expect("well-formed");
        assert_eq!(recoder.size, 4096, "exactly full");
        recode(&mut recoder, b"\x40\x01a\x7f\xe1\x1e").expect_err("cut short");
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for block in [
            &b"\x80"[..],
            b"\xbe",
            b"\xff",
            b"\xff\xff\xff\xff",
            b"\xff\xff\xff\xff\x0f",
            b"\x40",
            b"\x40\x01",
            b"\x40\x01a",
            b"\x40\x01a\x02b",
            b"\x00\x7f\xff\xff\x7f",
            b"\x0f",
            b"\x7f\x00",
            b"\x3f",
            b"\x01\x81\x00",
        ] {
            assert!(matches!(once(block), Err(Error::FieldBlock(_))), "{block:02x?}");
        }
    }

    #[test]
    fn a_small_block_does_not_grow_large() {
        let entry = [&b"\x40\x01a\x7f\xa1\x1e"[..], &[b'x'; 127 + 3872 + 1]].concat();
        let mut recoder = Recoder::new("localhost");
        assert_eq!(recode(&mut recoder, &entry).map(|written| written.len()), Ok(entry.len()));
        assert_eq!(recode(&mut recoder, &[0xbe; 16]).map(|written| written.len()), Ok(16 * entry.len()));
        let mut output = Vec::new();
        assert_eq!(recoder.recode(&[0xbe; 10_000], &mut output), Err(Error::TooLarge));
        assert!(output.len() < BLOCK_LIMIT + 8192, "{}", output.len());
    }
}
