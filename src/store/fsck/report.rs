//! What was found.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::store::collect::report::Kind;
use crate::store::key::TreeKey;

/// What was looked at, and what was wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Blobs that were compared with their digests.
    pub blobs: u64,
    /// Layers that were compared with their indexes.
    pub layers: u64,
    /// Trees that were compared with theirs.
    pub trees: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Entries that could not be looked at, for reasons that say nothing of them.
    pub skipped: u64,
    /// Entries that are not as they were recorded.
    pub damaged: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// An entry that is not as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Its name in the store.
    pub name: String,
    /// The reference it was pulled as, or its digest.
    pub shows: String,
    /// The first thing that is wrong with it.
    pub problem: Problem,
    /// The file in it, where it is one file.
    pub path: Option<String>,
    /// The trees that show something of it; the first of them.
    pub trees: Vec<TreeKey>,
    /// What the first of those were pulled as.
    pub references: Vec<String>,
    /// Whether it was taken out of the store, to be pulled again.
    pub repaired: bool,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// Other bytes.
    Content,
    /// More or fewer bytes.
    Size,
    /// Other permissions, or another time.
    Metadata,
    /// Something else is there: a directory for a file, another link.
    Kind,
    /// It is not there.
    Missing,
    /// Nothing should be there.
    Added,
    /// The index itself is damaged.
    Index,
    /// The record cannot be read.
    Record,
    /// The disk does not let it be read.
    Unreadable,
}

/// Why an entry is not as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Damage {
    pub problem: Problem,
    pub path: Option<String>,
}

impl Damage {
    /// Of a file in the entry.
    pub(in crate::store) fn of(problem: Problem, path: impl Into<String>) -> Self {
        Self { problem, path: Some(path.into()) }
    }

    /// Of the entry itself.
    pub(in crate::store) fn whole(problem: Problem) -> Self {
        Self { problem, path: None }
    }
}

/// Trees that are listed of a finding.
const TREES: usize = 64;
/// Findings that are listed.
const LISTED: usize = 1024;

impl Report {
    /// Adds an entry that is damaged.
    pub(in crate::store) fn add(
        &mut self,
        kind: Kind,
        name: &str,
        shows: &str,
        damage: Damage,
        (trees, references): (&[TreeKey], Vec<String>),
        repaired: bool,
    ) -> Finding {
        self.damaged += 1;
        let Damage { problem, path } = damage;
        tracing::warn!(%kind, name, shows, %problem, path, "the store is damaged");
        let (name, shows) = (name.to_owned(), shows.to_owned());
        let trees = trees.iter().take(TREES).cloned().collect();
        let finding = Finding { kind, name, shows, problem, path, trees, references, repaired };
        if self.findings.len() < LISTED {
            self.findings.push(finding.clone());
        }
        finding
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Content => "other content",
            Self::Size => "another size",
            Self::Metadata => "other permissions or times",
            Self::Kind => "something else is there",
            Self::Missing => "missing",
            Self::Added => "nothing should be there",
            Self::Index => "its index is damaged",
            Self::Record => "its record is damaged",
            Self::Unreadable => "cannot be read",
        })
    }
}
