//! Files with holes, as GNU tar and bsdtar write them into PAX archives: versions 0.0, 0.1 and 1.0.
//!
//! The archive has the file's data without its holes, and a map of where they belong: in the extended header, or in
//! front of the data. Source: GNU tar manual, "PAX Format, Versions 0.0 and 0.1" and "PAX Format, Version 1.0".

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// Where the data of a file belong: offsets and lengths by turns, in order, without overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map(Vec<u64>);

/// Pieces of data in one file: as many as an extended header can list.
pub const PIECES: usize = 65_536;
/// Bytes of memory of the longest map.
pub const MEMORY: usize = PIECES * 2 * size_of::<u64>();

/// What an extended header says of the holes of its entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stated {
    major: Option<u64>,
    minor: Option<u64>,
    /// The name of the file; the entry's own is made up for tools that know nothing of holes.
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    pieces: Option<u64>,
    /// Offsets and lengths by turns.
    numbers: Vec<u64>,
}

/// A file with holes, of which the map may still be to come.
pub(super) struct Sparse {
    /// Bytes of the file, with its holes.
    pub size: u64,
    /// `None` when it stands in front of the data.
    pub map: Option<Vec<u64>>,
}

impl Stated {
    /// Takes one record in, whose key follows `GNU.sparse.`.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || crate::unpack::field::decimal(value);
        match key {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"name" => self.name = Some(crate::unpack::field::name(value)?),
            b"size" | b"realsize" => {
                let size = number()?;
                if self.size.is_some_and(|known| known != size) {
                    return Err("a sparse file with two sizes");
                }
                self.size = Some(size);
            }
            b"numblocks" => self.pieces = Some(number()?),
            b"offset" if self.numbers.len().is_multiple_of(2) => self.add(number()?)?,
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => self.add(number()?)?,
            b"map" if value.is_empty() => {}
            b"map" if self.numbers.is_empty() => {
                for number in value.split(|byte| *byte == b',') {
                    self.add(crate::unpack::field::decimal(number)?)?;
                }
            }
            _ => return Err("a sparse file whose map is not sound"),
        }
        Ok(())
    }

    fn add(&mut self, number: u64) -> Result<(), &'static str> {
        if self.numbers.len() >= 2 * PIECES {
            return Err("a sparse file in more than 65536 pieces");
        }
        self.numbers.push(number);
        Ok(())
    }

    /// What was stated, when all records are in.
    pub fn finish(self) -> Result<Sparse, &'static str> {
        let size = self.size.ok_or("a sparse file without its size")?;
        let map = match (self.major, self.minor) {
            (Some(1), Some(0)) if self.numbers.is_empty() => None,
            (None | Some(0), None | Some(0 | 1))
                if self.pieces.is_none_or(|pieces| pieces == self.numbers.len() as u64 / 2) =>
            {
                Some(self.numbers)
            }
            (None | Some(0), None | Some(0 | 1)) | (Some(1), Some(0)) => {
                return Err("a sparse file whose map is not sound");
            }
            _ => return Err("a sparse file of an unknown version"),
        };
        Ok(Sparse { size, map })
    }
}

impl Map {
    /// Checks the map of a file of `size` bytes, of which the archive has `stored`.
    pub(super) fn new(numbers: Vec<u64>, size: u64, stored: u64) -> Result<Self, &'static str> {
        const BAD: &str = "a sparse file whose map is not sound";
        if !numbers.len().is_multiple_of(2) {
            return Err(BAD);
        }
        let (mut end, mut total) = (0_u64, 0_u64);
        for &[offset, length] in numbers.as_chunks::<2>().0 {
            if offset < end {
                return Err(BAD);
            }
            end = offset.checked_add(length).filter(|end| *end <= size).ok_or(BAD)?;
            total += length; // At most `size`, because they do not overlap.
        }
        if total == stored { Ok(Self(numbers)) } else { Err(BAD) }
    }

    /// A file without holes.
    pub fn whole(size: u64) -> Self {
        Self(if size > 0 { vec![0, size] } else { Vec::new() })
    }

    /// Offsets and lengths of the data.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&[offset, length]| (offset, length))
            .filter(|(_, length)| *length > 0)
    }
}

/// Reads the map of version 1.0 digit by digit: how many pieces there are, then their numbers, a line each.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pieces: Option<usize>,
    numbers: Vec<u64>,
    digits: Vec<u8>,
}

impl Lines {
    /// The next byte. `true` when the map is complete.
    pub fn byte(&mut self, byte: u8) -> Result<bool, &'static str> {
        if byte != b'\n' {
            self.digits.push(byte);
            return if self.digits.len() > 20 {
                Err("a sparse file whose map is not sound")
            } else {
                Ok(false)
            };
        }
        let number = crate::unpack::field::decimal(&self.digits)?;
        self.digits.clear();
        let pieces = match self.pieces {
            Some(pieces) => {
                self.numbers.push(number);
                pieces
            }
            None => *self.pieces.insert(usize::try_from(number).unwrap_or(usize::MAX)),
        };
        if pieces > PIECES {
            return Err("a sparse file in more than 65536 pieces");
        }
        Ok(self.numbers.len() == 2 * pieces)
    }

    /// Offsets and lengths by turns.
    pub fn numbers(self) -> Vec<u64> {
        self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(records: &[(&str, &str)]) -> Result<Sparse, &'static str> {
        let mut stated = Stated::default();
        for (key, value) in records {
            stated.record(key.as_bytes(), value.as_bytes())?;
        }
        stated.finish()
    }

    #[test]
    fn regression_the_three_versions_are_read() {
        let zero = [
            ("size", "100"),
            ("numblocks", "2"),
            ("offset", "0"),
            ("numbytes", "5"),
            ("offset", "90"),
            ("numbytes", "10"),
        ];
        let found = stated(&zero).expect("version 0.0");
        assert_eq!((found.size, found.map), (100, Some(vec![0, 5, 90, 10])));
        let one = [
            ("major", "0"),
            ("minor", "1"),
            ("name", "x"),
            ("size", "100"),
            ("numblocks", "2"),
            ("map", "0,5,90,10"),
        ];
        assert_eq!(stated(&one).expect("version 0.1").map, Some(vec![0, 5, 90, 10]));
        let ten = stated(&[("major", "1"), ("minor", "0"), ("name", "x"), ("realsize", "100")])
            .expect("version 1.0");
        assert_eq!((ten.size, ten.map), (100, None));
        let mut lines = Lines::default();
        let text = b"2\n0\n5\n90\n10\n";
        let ends: Vec<bool> = text.iter().map(|byte| lines.byte(*byte).expect("sound")).collect();
        assert_eq!(ends.iter().position(|end| *end), Some(text.len() - 1));
        assert_eq!(lines.numbers(), [0, 5, 90, 10]);
    }

    #[test]
    fn regression_maps_that_are_not_sound_are_refused() {
        for records in [
            &[("offset", "0"), ("numbytes", "5")][..],
            &[("size", "9"), ("numblocks", "2"), ("offset", "0"), ("numbytes", "5")],
            &[("size", "9"), ("realsize", "8")],
            &[("size", "9"), ("numbytes", "5")],
            &[("size", "9"), ("offset", "0"), ("offset", "5")],
            &[("size", "9"), ("map", "0,x")],
            &[("size", "9"), ("map", "0,5"), ("map", "6,1")],
            &[("size", "9"), ("major", "2"), ("minor", "0")],
            &[("size", "9"), ("major", "1"), ("minor", "1")],
            &[("size", "9"), ("major", "1")],
            &[("size", "9"), ("major", "1"), ("minor", "0"), ("map", "0,5")],
            &[("size", "-1")],
            &[("size", "9"), ("else", "1")],
        ] {
            assert!(stated(records).is_err(), "{records:?} was accepted");
        }
        for (numbers, size, stored) in [
            (&[0, 5, 4, 1][..], 9, 6),
            (&[5, 1, 0, 1], 9, 2),
            (&[0, 10], 9, 10),
            (&[0, 5], 9, 4),
            (&[0], 9, 0),
            (&[u64::MAX, 1], u64::MAX, 1),
            (&[], 9, 1),
        ] {
            assert!(Map::new(numbers.to_vec(), size, stored).is_err(), "{numbers:?} was accepted");
        }
        let map = Map::new(vec![0, 5, 9, 0], 9, 5).expect("sound");
        assert_eq!(map.pieces().collect::<Vec<_>>(), [(0, 5)]);
        let many = "0,0,".repeat(PIECES) + "0,0";
        assert!(stated(&[("size", "9"), ("map", &many)]).is_err());
        let mut lines = Lines::default();
        assert!(b"65537\n".iter().try_for_each(|byte| lines.byte(*byte).map(drop)).is_err());
        assert!(
            b"111111111111111111111"
                .iter()
                .try_for_each(|byte| Lines::default().byte(*byte).map(drop))
                .is_ok()
        );
        let mut lines = Lines::default();
        assert!(b"111111111111111111111".iter().try_for_each(|byte| lines.byte(*byte).map(drop)).is_err());
    }
}
