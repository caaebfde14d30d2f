//! Flags about the page cache: how much of the node's memory may be filled before pods ask for it.

use crate::node::bad_flag::BadFlag;
use crate::store::space::budget::Level;
use crate::warm::budget::{Memory, WarmBudget};

/// Flags about the page cache, as they were given.
#[derive(Debug, Clone)]
pub struct WarmFlags {
    /// `--warm-budget`
    pub budget: String,
    /// `--warm-pin-budget`
    pub pin_budget: String,
}

impl Default for WarmFlags {
    fn default() -> Self {
        Self { budget: BUDGET.to_owned(), pin_budget: PIN_BUDGET.to_owned() }
    }
}

/// What is read into memory, unless something else is said: the kernel drops it when programs want the memory.
pub const BUDGET: &str = "80%";
/// What is locked in memory, unless something else is said.
pub const PIN_BUDGET: &str = "0";
/// Hundredths of the memory that may be locked: the rest of the node has to live as well.
const PINNED_AT_MOST: Level = Level::Percent(80);

impl WarmFlags {
    /// Checks every flag. `None`: nothing is warmed.
    ///
    /// # Errors
    /// [`BadFlag`] names the first flag that cannot be used, and says why.
    pub fn check(self) -> Result<Option<WarmBudget>, BadFlag> {
        let bad = |flag, value: &str, reason: String| BadFlag { flag, value: value.to_owned(), reason };
        let level =
            |flag, value: &str| value.parse::<Level>().map_err(|error| bad(flag, value, error.to_string()));
        let (warm, pinned) =
            (level("--warm-budget", &self.budget)?, level("--warm-pin-budget", &self.pin_budget)?);
        let is_nothing = |level| matches!(level, Level::Count(0) | Level::Percent(0));
        if is_nothing(warm) && is_nothing(pinned) {
            return Ok(None);
        }
        let memory = Memory::read().map_err(|error| {
            bad("--warm-budget", &self.budget, format!("the node's memory is not known: {error}"))
        })?;
        let most = PINNED_AT_MOST.of(memory.total);
        let mut budget = WarmBudget { warm: warm.of(memory.total), pinned: pinned.of(memory.total) };
        if budget.pinned > most {
            let reason = format!("it must not be more than {PINNED_AT_MOST} of the node's memory");
            if matches!(pinned, Level::Percent(_)) {
                return Err(bad("--warm-pin-budget", &self.pin_budget, reason));
            }
            // The nodes of a cluster have the same settings, and not the same memory.
            tracing::warn!(
                value = self.pin_budget,
                most,
                "--warm-pin-budget: {reason}: that is what it is here"
            );
            budget.pinned = most;
        }
        Ok(Some(budget))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_locked_leaves_memory_to_the_node() {
        let check = |budget: &str, pin_budget: &str| {
            WarmFlags { budget: budget.to_owned(), pin_budget: pin_budget.to_owned() }.check()
        };
        let default = WarmFlags::default().check().expect("good").expect("on");
        assert!(default.warm > 0 && default.pinned == 0);
        assert_eq!(check("0", "0").expect("good"), None);
        assert_eq!(
            check("1GiB", "512MiB").expect("good"),
            Some(WarmBudget { warm: 1 << 30, pinned: 1 << 29 })
        );
        assert_eq!(check("a lot", "0").expect_err("no level").flag, "--warm-budget");
        assert_eq!(check("80%", "81%").expect_err("too much").flag, "--warm-pin-budget");
        let most = check("80%", "80%").expect("the most").expect("on").pinned;
        assert_eq!(check("80%", "1000TiB").expect("a smaller node").expect("on").pinned, most);
    }
}
