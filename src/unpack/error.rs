//! Why a layer was not unpacked.

use std::borrow::Cow;

use crate::failure::Kind;
use crate::layer::name::shown;

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An entry breaks a rule.
    #[error("entry \"{name}\": {rule}")]
    Entry {
        /// Its name, escaped.
        name: String,
        /// The rule.
        rule: Cow<'static, str>,
    },
    /// The archive itself is broken, or could be read in two ways.
    #[error("not a sound tar archive at byte {position}{place}: {rule}")]
    Archive {
        /// Where, in the uncompressed archive.
        position: u64,
        /// Where among the entries, in words; empty before the first.
        place: String,
        /// What is wrong.
        rule: Cow<'static, str>,
    },
    /// The compression is broken, or needs more memory than is given to it.
    #[error("its compression is not sound: {0}")]
    Compression(Cow<'static, str>),
    /// Neither a tar archive nor one that is compressed in a known way.
    #[error("it is {0}; supported are tar archives, plain or compressed with gzip or zstd")]
    Format(&'static str),
    /// It becomes more than anything that was made for use.
    #[error("it unpacks to more than {0}")]
    TooMuch(Cow<'static, str>),
    /// The uncompressed archive is not the one that was promised.
    #[error("its uncompressed content has digest {got}, where {expected} is promised")]
    Content {
        /// The digest that config or annotation name.
        expected: crate::oci::digest::Digest,
        /// The digest it has.
        got: crate::oci::digest::Digest,
    },
    /// The disk would become too full.
    #[error("no space left on the node for what is unpacked of it; free some, or give ocivol a larger disk")]
    NoSpace,
    /// Other layers that are unpacked at this moment need the memory.
    #[error("too many layers with very many {0} are unpacked at this moment; it is tried again")]
    Busy(&'static str),
    /// The kernel refused something in the store.
    #[error("cannot {action} \"{name}\": {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what, escaped.
        name: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Entry { .. }
            | Self::Archive { .. }
            | Self::Compression(_)
            | Self::Format(_)
            | Self::TooMuch(_)
            | Self::Content { .. } => Kind::FailedPrecondition,
            Self::NoSpace => Kind::ResourceExhausted,
            Self::Busy(_) | Self::Io { .. } => Kind::Unavailable,
        }
    }

    /// Whether the bytes are at fault. If they are the right ones, trying again does not help.
    pub fn is_about_content(&self) -> bool {
        self.kind() == Kind::FailedPrecondition
    }

    pub(super) fn archive(position: u64, rule: impl Into<Cow<'static, str>>) -> Self {
        Self::Archive { position, place: String::new(), rule: rule.into() }
    }

    /// Says of a broken archive which entry is near, the one thing that its maker knows.
    pub(super) fn near(mut self, how: &str, name: &[u8]) -> Self {
        if let Self::Archive { place, .. } = &mut self
            && place.is_empty()
        {
            *place = format!(", {how} entry \"{}\"", shown(name));
        }
        self
    }

    pub(super) fn entry(name: &[u8], rule: impl Into<Cow<'static, str>>) -> Self {
        Self::Entry { name: shown(name), rule: rule.into() }
    }
}

/// Turns a kernel error into [`Error`]: `map_err(io("create", name))`.
///
/// What the file system says of a name or a value itself is said of the entry: trying again does not help.
pub fn io<E: Into<std::io::Error>>(action: &'static str, name: &[u8]) -> impl FnOnce(E) -> Error {
    move |source| {
        let source = source.into();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Error::NoSpace,
            Some(libc::EINVAL | libc::ENAMETOOLONG) => {
                Error::entry(name, format!("cannot {action} it on this file system: {source}"))
            }
            _ => Error::Io { action, name: shown(name), source },
        }
    }
}
