//! `${pvc.metadata.name}` and `${pvc.metadata.namespace}` in the reference of a StorageClass: one class for many models.
//!
//! Who writes a claim chooses its name. It can choose among what the class's author has below a path, and nothing else: not the
//! registry, no other tag than where the class has one, no digest.

use std::collections::BTreeMap;

use crate::provision::error::Error;

/// The key under which the claim's namespace is told.
pub const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// What may be asked for, and the key under which external-provisioner's `--extra-create-metadata` tells it.
const KNOWN: [(&str, &str); 2] =
    [("${pvc.metadata.name}", "csi.storage.k8s.io/pvc/name"), ("${pvc.metadata.namespace}", NAMESPACE)];

/// The namespace of the claim, if it is told.
pub fn namespace(parameters: &BTreeMap<String, String>) -> Option<&str> {
    parameters.get(NAMESPACE).map(String::as_str).filter(|name| !name.is_empty())
}

/// `reference` with the names of the claim.
///
/// # Errors
/// [`Error::Placeholder`], [`Error::NotTold`], [`Error::Name`].
pub fn fill_in(reference: &str, parameters: &BTreeMap<String, String>) -> Result<String, Error> {
    let mut filled = String::with_capacity(reference.len());
    let mut rest = reference;
    while let Some(at) = rest.find("${") {
        let (before, placeholder) = rest.split_at(at);
        filled.push_str(before);
        let known = KNOWN.iter().find(|(text, _)| placeholder.starts_with(text));
        let (Some((text, key)), true) = (known, filled.contains('/')) else {
            let end = placeholder.find('}').map_or(placeholder.len(), |end| end + 1);
            return Err(Error::Placeholder { text: placeholder[..end].chars().take(100).collect() });
        };
        let value = parameters.get(*key).filter(|value| !value.is_empty());
        let value = value.ok_or(Error::NotTold { text })?;
        if !is_part(value) {
            return Err(Error::Name { value: value.chars().take(100).collect() });
        }
        filled.push_str(value);
        rest = &placeholder[text.len()..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Whether `name` is a part of a path, as names of Kubernetes are: RFC 1123's subdomains. Source: distribution-spec,
/// `spec.md#pulling-manifests`.
fn is_part(name: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> BTreeMap<String, String> {
        [("csi.storage.k8s.io/pvc/name", "llama-3.1"), ("csi.storage.k8s.io/pvc/namespace", "shop")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn names_of_the_claim_are_filled_in() {
        for (reference, expected) in [
            ("r.example/m/${pvc.metadata.name}:v1", "r.example/m/llama-3.1:v1"),
            ("r.example/${pvc.metadata.namespace}/${pvc.metadata.name}", "r.example/shop/llama-3.1"),
            ("r.example/m:${pvc.metadata.name}", "r.example/m:llama-3.1"),
            ("r.example/m:v1", "r.example/m:v1"),
        ] {
            assert_eq!(fill_in(reference, &told()).expect(reference), expected);
        }
        let error = |reference: &str, told: &BTreeMap<String, String>| {
            fill_in(reference, told).expect_err(reference).to_string()
        };
        assert!(
            error("r.example/${pvc.metadata.name}", &BTreeMap::new()).contains("--extra-create-metadata")
        );
        for reference in ["r.example/${pv.metadata.name}", "r.example/${", "r.example/${pvc.metadata.name"] {
            assert!(error(reference, &told()).contains("known are ${pvc.metadata.name}"), "{reference}");
        }
    }

    #[test]
    fn a_claim_chooses_neither_the_registry_nor_anything_outside_its_part() {
        assert!(matches!(fill_in("${pvc.metadata.name}/m", &told()), Err(Error::Placeholder { .. })));
        for name in
            ["..", "a/b", "a:b", "a@sha256", "A", "-a", "a-", ".a", "a..b", "${pvc.metadata.name}", "a\n"]
        {
            let mut told = told();
            told.insert(KNOWN[0].1.into(), name.into());
            let filled = fill_in("r.example/${pvc.metadata.name}", &told);
            assert!(matches!(filled, Err(Error::Name { .. })), "{name}: {filled:?}");
        }
    }
}
