//! IDs of volumes that the controller makes: `ocv1-`, 32 hexadecimal digits of the name's SHA-256, and 4 to check them.
//!
//! The name of a claim is nobody else's business, and the same name gives the same ID, whoever answers. Nothing is kept of them.

use crate::oci::digest::Digest;

const PREFIX: &str = "ocv1-";
const NAME_DIGITS: usize = 32;
const CHECK_DIGITS: usize = 4;

/// The ID of the volume called `name`.
pub fn of_name(name: &str) -> String {
    let body = format!("{PREFIX}{}", digits(name, NAME_DIGITS));
    let check = digits(&body, CHECK_DIGITS);
    body + &check
}

/// Whether a controller of ocivol made this ID.
pub fn is_ours(id: &str) -> bool {
    id.starts_with(PREFIX)
        && id.len() == PREFIX.len() + NAME_DIGITS + CHECK_DIGITS
        && id
            .split_at_checked(id.len() - CHECK_DIGITS)
            .is_some_and(|(body, check)| digits(body, CHECK_DIGITS) == check)
}

fn digits(text: &str, count: usize) -> String {
    Digest::sha256(text.as_bytes()).hex().chars().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_who_made_it() {
        let id = of_name("pvc-6f1c");
        assert_eq!(id, of_name("pvc-6f1c"));
        assert_ne!(id, of_name("pvc-6f1d"));
        assert!(is_ours(&id) && id.len() == 41, "{id}");
        let last = if id.ends_with('0') { "1" } else { "0" };
        let (altered, unaligned) = (format!("{}{last}", &id[..40]), format!("ocv1-{}é", "0".repeat(34)));
        for other in ["", "fake-vol-id", "ocv1-", &id[..40], &altered, &unaligned] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
