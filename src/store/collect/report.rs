//! What a collection did, or would do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::store::space::amount::Amount;

/// What went and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What became free, or would: without what files have in common that stay.
    pub freed: Amount,
    /// What could not go although it was asked for: trees that are in use, and what belongs to them.
    pub in_use: Amount,
    /// The part of it that stays only because the configuration keeps it. What trees have in common is counted for each of them.
    #[serde(default)]
    pub pinned: Amount,
    /// How many things went.
    pub gone: u64,
    /// How many trees stay.
    pub stays: u64,
    /// The first of them.
    pub items: Vec<Item>,
}

/// Something in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its name in the store.
    pub name: String,
    /// The reference it was pulled as, where that is known, or the digest of what it shows.
    pub shows: String,
    /// What it takes.
    pub takes: Amount,
    /// Whether it goes.
    pub goes: bool,
    /// Why.
    pub reason: Reason,
}

/// What can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What pods see.
    Tree,
    /// An unpacked archive.
    Layer,
    /// A blob as a file.
    Blob,
    /// A download that is not finished.
    Download,
    /// What has no record.
    Leftover,
}

/// Why something goes, or stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Nothing has used it for so many seconds.
    UnusedFor(u64),
    /// No tree refers to it.
    Unreferenced,
    /// Nobody works on it.
    Unfinished,
    /// It has no record.
    NoRecord,
    /// It is mounted.
    Mounted,
    /// A pull needs it.
    Pulled,
    /// The process with this number has it mounted.
    Leased(u32),
    /// The configuration keeps this reference.
    Pinned(String),
    /// It was used so many seconds ago.
    UsedAgo(u64),
    /// There is enough room without it.
    Enough,
}

/// What the record of an entry takes, and what else there is about it.
pub(in crate::store) const RECORD: Amount = Amount { bytes: 8192, inodes: 3 };
/// Items that are listed.
const LISTED: usize = 4096;

impl Report {
    /// Something goes.
    pub(in crate::store) fn goes(
        &mut self,
        kind: Kind,
        name: &str,
        shows: &str,
        takes: Amount,
        reason: Reason,
    ) {
        self.gone += 1;
        self.list(Item { kind, name: name.to_owned(), shows: shows.to_owned(), takes, goes: true, reason });
    }

    /// A tree stays.
    pub(in crate::store) fn stays(&mut self, name: &str, shows: &str, takes: Amount, reason: Reason) {
        self.stays += 1;
        if reason != Reason::Enough {
            self.in_use = self.in_use.plus(takes);
        }
        if let Reason::Pinned(_) = reason {
            self.pinned = self.pinned.plus(takes);
        }
        let (kind, name, shows) = (Kind::Tree, name.to_owned(), shows.to_owned());
        self.list(Item { kind, name, shows, takes, goes: false, reason });
    }

    fn list(&mut self, item: Item) {
        if self.items.len() < LISTED {
            self.items.push(item);
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tree => "tree",
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::Download => "download",
            Self::Leftover => "leftover",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnusedFor(seconds) => write!(out, "unused for {}", Ago(*seconds)),
            Self::Unreferenced => out.write_str("no tree needs it"),
            Self::Unfinished => out.write_str("nobody goes on with it"),
            Self::NoRecord => out.write_str("it has no record"),
            Self::Mounted => out.write_str("mounted"),
            Self::Pulled => out.write_str("needed by a pull"),
            Self::Leased(pid) => write!(out, "mounted by {}", process(*pid)),
            Self::Pinned(reference) => write!(out, "pinned as {reference}"),
            Self::UsedAgo(seconds) => write!(out, "in use until {} ago; kept for a while", Ago(*seconds)),
            Self::Enough => out.write_str("there is enough room"),
        }
    }
}

/// A process, which may be one that is not seen from here.
pub fn process(pid: u32) -> String {
    match pid {
        0 => "a process in another PID namespace a while ago".to_owned(),
        pid => format!("process {pid}"),
    }
}

/// A time in words.
struct Ago(u64);

impl fmt::Display for Ago {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            seconds @ 0..120 => (seconds, "second"),
            seconds @ 120..7200 => (seconds / 60, "minute"),
            seconds @ 7200..172_800 => (seconds / 3600, "hour"),
            seconds => (seconds / 86_400, "day"),
        };
        write!(out, "{number} {unit}{}", if number == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pinned_is_summed_also_where_it_is_not_listed() {
        let (mut report, takes) = (Report::default(), Amount { bytes: 10, inodes: 1 });
        report.stays("mounted", "", takes, Reason::Mounted);
        for _ in 0..LISTED + 1 {
            report.stays("pinned", "", takes, Reason::Pinned("r.example/m:v1".to_owned()));
        }
        assert_eq!(report.items.len(), LISTED);
        let pinned = LISTED as u64 + 1;
        assert_eq!(report.pinned, Amount { bytes: 10 * pinned, inodes: pinned });
        assert_eq!(report.in_use, report.pinned.plus(takes));
    }

    #[test]
    fn reasons_are_said_in_words() {
        for (reason, text) in [
            (Reason::UnusedFor(1), "unused for 1 second"),
            (Reason::UnusedFor(3 * 86_400), "unused for 3 days"),
            (Reason::UsedAgo(300), "in use until 5 minutes ago; kept for a while"),
            (Reason::Leased(17), "mounted by process 17"),
            (Reason::Leased(0), "mounted by a process in another PID namespace a while ago"),
        ] {
            assert_eq!(reason.to_string(), text);
        }
    }
}
