//! How much of its file system the store may take.
//!
//! kubelet evicts pods when less than 10 % of the bytes or 5 % of the inodes of its file system are free, and less than 15 % of
//! the bytes of the one that images are in (`--eviction-hard`, Kubernetes "Node-pressure Eviction"). The defaults stay clear of
//! all of them, so that the store is never the reason.

use std::fmt;
use std::str::FromStr;

use crate::store::space::amount::Amount;

/// What may be taken, and what is kept free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// What is unused is collected when so much is used; not at all by itself if not said.
    pub start: Option<Level>,
    /// Then it is collected until no more than so much is used.
    pub stop: Level,
    /// Bytes that are kept free.
    pub keep_free: Level,
    /// Inodes that are kept free.
    pub keep_free_inodes: Level,
}

/// A part of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Hundredths of all there is.
    Percent(u8),
    /// So many bytes, or inodes.
    Count(u64),
    /// Hundredths of all there is, and not more than so many.
    AtMost(u8, u64),
}

/// A text is no [`Level`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is neither a percentage, as 15%, nor a number of bytes, as 40GiB")]
pub struct BadLevel;

/// What a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// All of it. No inodes where they are made as they are needed.
    pub total: Amount,
    /// What a process without privileges could take, as kubelet counts it.
    pub free: Amount,
}

impl Budget {
    /// For a node that pods run on.
    pub const NODE: Self = Self {
        start: Some(Level::Percent(80)),
        stop: Level::Percent(75),
        keep_free: Level::Percent(15),
        keep_free_inodes: Level::Percent(8),
    };

    /// For a command on any machine: nothing is collected that nobody asks for, and other programs keep some.
    pub const COMMAND: Self = Self {
        start: None,
        stop: Level::Percent(75),
        keep_free: Level::AtMost(5, 1 << 30),
        keep_free_inodes: Level::Percent(2),
    };

    /// What may still be taken.
    pub fn available(&self, usage: Usage) -> Amount {
        let free = usage.free.minus(self.kept(usage));
        if usage.total.inodes == 0 { Amount { inodes: u64::MAX, ..free } } else { free }
    }

    /// What may be used of the file system, by whomever.
    pub fn limit(&self, usage: Usage) -> Amount {
        usage.total.minus(self.kept(usage))
    }

    /// What has to be freed before anything may be taken: others have written into what is kept free.
    pub fn deficit(&self, usage: Usage) -> Amount {
        self.kept(usage).minus(usage.free)
    }

    fn kept(&self, usage: Usage) -> Amount {
        let Usage { total, .. } = usage;
        Amount { bytes: self.keep_free.of(total.bytes), inodes: self.keep_free_inodes.of(total.inodes) }
    }

    /// What has to be freed, if so much is used that it is time to. Inodes have no measure but a share of all.
    pub fn excess(&self, usage: Usage) -> Option<Amount> {
        let start = self.start?;
        let used = usage.total.minus(usage.free);
        let share = |level: Level| match level {
            Level::Percent(_) | Level::AtMost(..) => level.of(usage.total.inodes),
            // As near to the limit as the watermark of bytes is to theirs, whatever that is.
            Level::Count(_) => usage.total.inodes - self.keep_free_inodes.of(usage.total.inodes),
        };
        let is_time = used.bytes >= start.of(usage.total.bytes)
            || (usage.total.inodes > 0 && used.inodes >= share(start));
        let stop = Amount { bytes: self.stop.of(usage.total.bytes), inodes: share(self.stop) };
        let excess = used.minus(stop);
        let excess = if usage.total.inodes == 0 { Amount { inodes: 0, ..excess } } else { excess };
        Some(excess).filter(|excess| is_time && !excess.is_nothing())
    }
}

impl Level {
    /// How much it is of `total`.
    pub fn of(self, total: u64) -> u64 {
        let share =
            |percent: u8| u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(total);
        match self {
            Self::Percent(percent) => share(percent),
            Self::Count(count) => count.min(total),
            Self::AtMost(percent, count) => share(percent).min(count),
        }
    }
}

impl FromStr for Level {
    type Err = BadLevel;

    /// `15%`, `500000`, `40GiB`, and as Kubernetes writes quantities: `40Gi`, `40G`.
    fn from_str(text: &str) -> Result<Self, BadLevel> {
        let text = text.trim();
        if let Some(number) = text.strip_suffix('%') {
            let percent = number.trim().parse().map_err(|_| BadLevel)?;
            return if percent <= 100 { Ok(Self::Percent(percent)) } else { Err(BadLevel) };
        }
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "k" | "kB" => 1000,
            "M" | "MB" => 1000_u64.pow(2),
            "G" | "GB" => 1000_u64.pow(3),
            "T" | "TB" => 1000_u64.pow(4),
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            "Ti" | "TiB" => 1 << 40,
            _ => return Err(BadLevel),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .map(Self::Count)
            .ok_or(BadLevel)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(out, "{percent}%"),
            Self::Count(count) => write!(out, "{count}"),
            Self::AtMost(percent, count) => write!(out, "{percent}%, at most {count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(total: u64, free: u64) -> Usage {
        Usage { total: Amount { bytes: total, inodes: total }, free: Amount { bytes: free, inodes: free } }
    }

    #[test]
    fn levels_are_percentages_or_quantities() {
        for (text, level) in [
            ("15%", Level::Percent(15)),
            ("0", Level::Count(0)),
            ("40GiB", Level::Count(40 << 30)),
            ("40Gi", Level::Count(40 << 30)),
            ("2 TB", Level::Count(2_000_000_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(level), "{text}");
        }
        for text in ["", "%", "101%", "-1", "1.5GiB", "1 PiB", "GiB", "99999999999TiB"] {
            assert_eq!(text.parse::<Level>(), Err(BadLevel), "{text}");
        }
    }

    #[test]
    fn a_node_keeps_clear_of_eviction() {
        let budget = Budget::NODE;
        assert_eq!(budget.available(usage(1000, 200)), Amount { bytes: 50, inodes: 120 });
        assert_eq!(budget.available(usage(1000, 100)), Amount { bytes: 0, inodes: 20 });
        assert_eq!(budget.deficit(usage(1000, 100)), Amount { bytes: 50, inodes: 0 });
        assert_eq!(budget.excess(usage(1000, 201)), None);
        assert_eq!(budget.excess(usage(1000, 200)), Some(Amount { bytes: 50, inodes: 50 }));
        // A file system that makes inodes as it needs them has no share of them.
        let endless = Usage { total: Amount::bytes(1000), free: Amount::bytes(200) };
        assert_eq!(budget.available(endless), Amount { bytes: 50, inodes: u64::MAX });
        assert_eq!(budget.excess(endless), Some(Amount { bytes: 50, inodes: 0 }));
    }

    #[test]
    fn a_command_collects_nothing_by_itself() {
        assert_eq!(Budget::COMMAND.excess(usage(1000, 1)), None);
        let tib = usage(1 << 40, 1 << 39);
        assert_eq!(Budget::COMMAND.available(tib).bytes, (1 << 39) - (1 << 30));
    }
}
