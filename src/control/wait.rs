//! Two commands on one store: the second waits for the first.

use std::io::Read as _;
use std::time::Duration;

use crate::control::client::is_served;
use crate::failure::Failure;
use crate::host::blocking::{self, Lane};
use crate::volume::volumes::Volumes;

/// How often it is looked whether the store is free.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a command waits. A person stops it before that.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of another command's line that are read, and characters of it that are said.
const READ: u64 = 4096;
const LINE: usize = 200;

/// Opens the store of `volumes` for this process when no other one has it, or returns when a plugin has it that can be asked. Calls
/// `told` once with who is waited for.
///
/// # Errors
/// When the store cannot be opened for another reason, or is not free in a day.
pub async fn until_free(volumes: &Volumes, told: impl FnOnce(&str)) -> Result<(), Failure> {
    let mut told = Some(told);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        looks.tick().await;
        if is_served(volumes.store_root()).await? {
            return Ok(());
        }
        let error = match volumes.puller().await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let Some(holder) = error.holder().filter(|_| tokio::time::Instant::now() < end) else {
            return Err(error.into());
        };
        if let Some(told) = told.take() {
            let holder = holder.to_owned();
            told(&blocking::run(Lane::Store, move || describe(&holder)).await);
        }
    }
}

/// The holder of a store, with the command that it runs where that can be seen.
fn describe(holder: &str) -> String {
    let number = holder.strip_prefix("process ").and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    let command = number.and_then(command_of);
    match (number, command) {
        (Some(number), Some(command)) => format!("process {number} ({command})"),
        _ if holder.is_empty() => "another process".to_owned(),
        _ => holder.to_owned(),
    }
}

/// What the process was started with, if it is an ocivol in sight.
fn command_of(process: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    if name.trim_end() != "ocivol" {
        return None;
    }
    let mut line = Vec::new();
    std::fs::File::open(format!("/proc/{process}/cmdline")).ok()?.take(READ).read_to_end(&mut line).ok()?;
    let words =
        line.split(|byte| *byte == 0).skip(1).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ");
    Some(crate::failure::one_line(words.trim_end()).chars().take(LINE).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_is_not_known_is_said_as_it_named_itself() {
        for (holder, said) in [("", "another process"), ("process 0 on vm", "process 0 on vm"), ("x", "x")] {
            assert_eq!(describe(holder), said);
        }
    }
}
