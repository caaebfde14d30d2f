//! Content of a layout as the body of an answer, which says how long it is.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream;
use http_body::{Frame, SizeHint};

use crate::host::blocking::{self, Lane};
use crate::registry::local::layout::Content;

/// Bytes that are read at a time: less than what a connection to a registry may have in memory.
const PIECE: usize = 256 * 1024;

/// A body of a length that is known.
struct Sized {
    inner: reqwest::Body,
    length: u64,
}

/// The bytes of `range` in `content`, read as they are asked for, on threads that may block.
pub(super) fn body(content: Content, range: Range<u64>) -> reqwest::Body {
    let length = range.end - range.start;
    let pieces = stream::try_unfold((content, range), |(content, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let file = Arc::clone(&content.file);
        let at = content.start + range.start;
        let wanted = usize::try_from(range.end - range.start).unwrap_or(PIECE).min(PIECE);
        let read = move || {
            let mut piece = vec![0; wanted];
            let length = file.read_at(&mut piece, at)?;
            piece.truncate(length);
            Ok::<_, io::Error>(piece)
        };
        let piece = blocking::run(Lane::Store, read).await?;
        if piece.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        let next = range.start + piece.len() as u64..range.end;
        Ok(Some((Bytes::from(piece), (content, next))))
    });
    reqwest::Body::wrap(Sized { inner: reqwest::Body::wrap_stream(pieces), length })
}

impl http_body::Body for Sized {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
