//! What the caller of a failed operation can do about it: the one vocabulary that errors of all modules share.
//!
//! Every module has its own error type with its own text; each says through `kind` which of these it is. The
//! CSI service maps a [`Kind`] to a gRPC code, the control socket carries it, and nothing else looks inside.

use serde::{Deserialize, Serialize};

/// Why an operation failed, seen from who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The request is wrong: whoever wrote the volume has to change it.
    InvalidArgument,
    /// The thing named does not exist.
    NotFound,
    /// Something else is already there.
    AlreadyExists,
    /// Credentials are missing or were not accepted.
    Unauthenticated,
    /// The credentials are known and have no right to this.
    PermissionDenied,
    /// What was asked for is larger than the caller said it may be.
    OutOfRange,
    /// Disk, quota or a configured limit is used up; may pass.
    ResourceExhausted,
    /// A registry, the network or the store cannot be used now; may pass.
    Unavailable,
    /// Work goes on, but longer than the caller waits.
    DeadlineExceeded,
    /// Another operation on the same target took precedence.
    Aborted,
    /// What was asked for cannot be had in this state: content that is invalid or not supported, a mode that a
    /// read-only volume does not have. Trying again does not help.
    FailedPrecondition,
    /// A fault of this program or of the kernel under it.
    Internal,
}

/// Why an operation failed, in a form that crosses the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the caller can do.
    pub kind: Kind,
    /// One line for people.
    pub message: String,
}

impl Failure {
    /// The command was used wrongly.
    pub fn usage(message: &str) -> Self {
        Self { kind: Kind::InvalidArgument, message: message.to_owned() }
    }

    /// This program, or the kernel under it, has a fault.
    pub fn internal(message: &str) -> Self {
        Self { kind: Kind::Internal, message: message.to_owned() }
    }

    /// `error` with everything that caused it.
    pub fn new(kind: Kind, error: &dyn std::error::Error) -> Self {
        Self { kind, message: chain(error) }
    }
}

/// `error` and everything that caused it, on one line: `what: why: why that`.
///
/// A cause whose text is already part of its parent's is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    one_line(&text)
}

/// `text` without control characters, at most `LINE_LIMIT` bytes: what a registry or a reference holds must
/// not be able to forge lines in a log or an event.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LINE_LIMIT));
    for character in text.chars() {
        if line.len() >= LINE_LIMIT {
            line.push('…');
            break;
        }
        if character.is_control() || is_unseen(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Whether a character shows nothing, or changes how others are shown: zero-width characters, and those that turn the direction
/// of text. Source: Unicode Standard Annex 9, Technical Report 36.
fn is_unseen(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// Bytes of an error text: a pod event holds 1,024 characters, kubelet's prefix included.
const LINE_LIMIT: usize = 900;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t57_control_characters_are_escaped_and_length_is_bounded() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(one_line("a\u{202e}b\u{200b}\u{feff}é"), "a\\u{202e}b\\u{200b}\\u{feff}é");
        assert!(one_line(&"x".repeat(5000)).len() < LINE_LIMIT + 8);
    }

    #[test]
    fn causes_follow_once() {
        let inner = std::io::Error::other("disk on fire");
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write /x")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(chain(&Outer(inner)), "cannot write /x: disk on fire");
    }
}
