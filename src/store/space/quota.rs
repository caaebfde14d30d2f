//! What a namespace may bring into the store that nobody else uses.

use crate::store::space::amount::Amount;

/// The bounds of one namespace; none where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of files.
    pub bytes: Option<u64>,
    /// Files and directories.
    pub inodes: Option<u64>,
    /// Trees: each other choice of files, and each other manifest, is one.
    pub trees: Option<u64>,
}

/// What a namespace has that nobody else uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Possession {
    /// Bytes and inodes.
    pub takes: Amount,
    /// Trees.
    pub trees: u64,
}

impl Quota {
    /// Whether nothing is bounded.
    pub fn is_endless(&self) -> bool {
        *self == Self::default()
    }

    /// What is too much of `has` when so much more comes.
    pub fn excess(&self, has: Possession, coming: Possession) -> Possession {
        let over = |has: u64, limit: Option<u64>| limit.map_or(0, |limit| has.saturating_sub(limit));
        let will_have = has.takes.plus(coming.takes);
        Possession {
            takes: Amount {
                bytes: over(will_have.bytes, self.bytes),
                inodes: over(will_have.inodes, self.inodes),
            },
            trees: over(has.trees + coming.trees, self.trees),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_bounded_is_never_too_much() {
        let has = Possession { takes: Amount { bytes: 90, inodes: 5 }, trees: 7 };
        let coming = Possession { takes: Amount { bytes: 20, inodes: 1 }, trees: 1 };
        assert_eq!(Quota::default().excess(has, coming), Possession::default());
        let quota = Quota { bytes: Some(100), trees: Some(7), ..Quota::default() };
        let over = quota.excess(has, coming);
        assert_eq!((over.takes, over.trees), (Amount { bytes: 10, inodes: 0 }, 1));
        let quota = Quota { inodes: Some(6), trees: Some(8), ..Quota::default() };
        assert_eq!(quota.excess(has, coming), Possession::default());
    }
}
