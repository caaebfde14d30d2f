//! The records of a store, as a test that breaks them sees them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The records of a store.
pub fn records(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in ["blobs/sha256", "layers", "images"] {
        for entry in fs::read_dir(root.join("v1").join(name)).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "json") {
                found.push(path);
            }
        }
    }
    found
}

/// Changes a field of a record that is a text without commas, or a number. Nothing else is touched: a checksum has more digits than
/// JSON's numbers are read with.
pub fn change(path: &Path, key: &str, value: &Value) {
    let record = fs::read_to_string(path).expect("read");
    let name = format!("\"{key}\":");
    let at = record.find(&name).expect("the field") + name.len();
    let end = at + record[at..].find([',', '}']).expect("its end");
    fs::write(path, format!("{}{value}{}", &record[..at], &record[end..])).expect("written");
}

/// Whether the store knows that what a record speaks of is on the disk.
pub fn is_durable(record: &Path) -> bool {
    let read: Value = serde_json::from_slice(&fs::read(record).unwrap_or_default()).unwrap_or_default();
    let Some(generation) = read["generation"].as_u64() else { return read["durable"] == true };
    let key = record.file_stem().expect("a name").to_string_lossy().into_owned();
    let directory = record.parent().expect("a directory");
    let (kind, store) = match directory.file_name().and_then(|name| name.to_str()).expect("UTF-8") {
        "layers" => ("layer", directory.parent()),
        "images" => ("tree", directory.parent()),
        "sha256" => ("blob-sha256", directory.parent().and_then(Path::parent)),
        other => panic!("{other} has no records"),
    };
    store.expect("a store").join("durable").join(format!("{kind}-{key}-{generation:016x}")).exists()
}

/// Nothing is known to be on the disk any more; with `reboot`, all was written before another boot.
pub fn make_volatile(root: &Path, reboot: bool) {
    for entry in fs::read_dir(root.join("v1/durable")).into_iter().flatten() {
        fs::remove_file(entry.expect("an entry").path()).expect("removed");
    }
    for path in records(root).into_iter().filter(|_| reboot) {
        change(&path, "boot_id", &"another boot".into());
    }
}
