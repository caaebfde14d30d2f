//! What registries and people write, as text: challenges, manifests, references, platforms.
//!
//! Errors are fine, panics are bugs. What is accepted is within its bounds, and reads the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocivol::oci::manifest;
use ocivol::oci::manifest::{Document, ENTRY_LIMIT};
use ocivol::oci::platform::Platform;
use ocivol::oci::reference::Reference;
use ocivol::registry::challenge;
use ocivol::registry::challenge::Challenge;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(document) = manifest::parse(bytes, None) {
        let entries = match &document {
            Document::Manifest(manifest) => &manifest.layers,
            Document::Index(index) => &index.manifests,
        };
        assert!(entries.len() <= ENTRY_LIMIT);
        for data in entries.iter().filter_map(|entry| entry.embedded()) {
            assert!(data.len() <= bytes.len());
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let values = text.split('\n');
    if let Some(Challenge::Bearer { realm, service, scope }) = challenge::choose(values) {
        assert!(!realm.is_empty());
        for stated in [Some(realm), service, scope].into_iter().flatten() {
            assert!(stated.len() <= text.len());
        }
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().as_ref(), Ok(&platform));
    }
});
