//! The parameters of a StorageClass: attributes of its volumes, and three more for the one who makes them.

use std::collections::BTreeMap;

use crate::provision::claim_name::fill_in;
use crate::provision::error::Error;
use crate::volume::attributes::{Attributes, is_ignored};

/// What a class says, with the names of one claim in it.
#[derive(Debug)]
pub struct Class {
    /// What its volumes have as attributes, as they were given.
    pub given: BTreeMap<String, String>,
    /// The same, checked.
    pub attributes: Attributes,
    /// `pin`: the volume names the digest that the tag is now. The default.
    pub pin: bool,
    /// `check`: the registry is asked for the manifest. The default; without it neither registry nor network are needed.
    pub check: bool,
}

const PIN: &str = "pin";
const CHECK: &str = "check";

impl Class {
    /// Reads the parameters that external-provisioner passes.
    ///
    /// # Errors
    /// When one is unknown, or has a bad value.
    pub fn parse(mut parameters: BTreeMap<String, String>) -> Result<Self, Error> {
        let said = parameters.remove(PIN);
        let is_wanted = said.as_deref().is_some_and(|value| value.trim() == "true");
        let pin = flag(PIN, said.as_deref())?;
        let check = flag(CHECK, parameters.remove(CHECK).as_deref())?;
        if let Some(reference) = parameters.get("reference") {
            let filled = fill_in(reference, &parameters)?;
            parameters.insert("reference".to_owned(), filled);
        }
        parameters.retain(|key, _| !is_ignored(key));
        let attributes = Attributes::parse(&parameters)?;
        let (is_named, is_layout) =
            (attributes.reference.digest().is_some(), attributes.reference.is_layout());
        if is_wanted && is_layout && !is_named {
            return Err(Error::PinOnNode);
        }
        if pin && !check && !is_named && !is_layout {
            return Err(Error::PinUnasked);
        }
        Ok(Self { given: parameters, attributes, pin, check })
    }
}

fn flag(key: &'static str, value: Option<&str>) -> Result<bool, Error> {
    match value.map(str::trim) {
        None | Some("" | "true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(Error::Flag { key, value: other.chars().take(100).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Class, Error> {
        Class::parse(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn parameters_are_attributes_and_what_the_class_says_of_its_volumes() {
        let class = parse(&[
            ("reference", "r.example/${pvc.metadata.name}:v1"),
            ("include", "*.json"),
            ("readOnlyForWriters", "true"),
            ("csi.storage.k8s.io/pvc/name", "llama"),
            ("csi.storage.k8s.io/pv/name", "pvc-1"),
        ])
        .expect("a class");
        assert!(class.pin && class.check && class.attributes.read_only_for_writers);
        let keys: Vec<&str> = class.given.keys().map(String::as_str).collect();
        assert_eq!(keys, ["include", "readOnlyForWriters", "reference"]);
        assert_eq!(class.given["reference"], "r.example/llama:v1");
    }

    #[test]
    fn what_cannot_be_is_said_with_the_cure() {
        let reference = ("reference", "r.example/x:v1");
        let table: [(&[(&str, &str)], &str); 6] = [
            (&[("reference", "oci-layout:/srv/x:v1"), ("pin", "true")], "not known here"),
            (&[], "reference is missing"),
            (&[reference, ("pin", "yes")], "parameter pin is \"yes\""),
            (&[reference, ("check", "false")], "set pin: \"false\" as well"),
            (&[reference, ("pinned", "true")], "unknown volume attribute \"pinned\""),
            (&[reference, ("warm", "always")], "auto, never, pinned"),
        ];
        for (pairs, expected) in table {
            let error = parse(pairs).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse(&[reference, ("check", "false"), ("pin", "false")]).is_ok());
    }
}
