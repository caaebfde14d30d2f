//! The layers of `docs/architecture.md`, checked against the `use` lines.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that every other one may name.
const EVERYBODYS: [&str; 2] = ["failure", "moment"];

/// Module, and the modules of this crate that it may name beside those.
const MAY_USE: [(&str, &[&str]); 21] = [
    ("failure", &[]),
    ("moment", &[]),
    ("accept", &[]),
    ("oci", &[]),
    ("layer", &["oci"]),
    ("layout", &["oci", "layer"]),
    ("sys", &[]),
    ("inode", &["layer"]),
    ("registry", &["oci"]),
    ("store", &["oci", "layer", "layout", "sys", "inode"]),
    ("unpack", &["oci", "layer", "sys", "inode"]),
    ("mount", &["oci", "layout", "sys"]),
    ("pull", &["oci", "layer", "layout", "registry", "store", "unpack"]),
    ("volume", &["oci", "layer", "layout", "store", "mount", "pull"]),
    ("csi", &["accept", "volume"]),
    ("control", &["layer", "pull", "volume", "csi"]),
    ("config", &["oci", "registry", "mount", "pull", "csi"]),
    ("limits", &["layer", "layout", "pull", "registry", "store", "unpack", "volume"]),
    ("telemetry", &["accept"]),
    ("demo", &["oci", "csi"]),
    (
        "cli",
        &[
            "oci",
            "layout",
            "registry",
            "store",
            "mount",
            "pull",
            "volume",
            "csi",
            "control",
            "config",
            "limits",
            "telemetry",
            "demo",
        ],
    ),
];

/// Words that a module's code does not contain, and why.
const NEVER: [(&str, &[&str]); 7] = [
    ("oci", &["tokio", "std::fs", "std::net::Tcp", "SystemTime", "Instant"]),
    ("layout", &["tokio", "std::fs", "std::net", "SystemTime", "Instant"]),
    ("layer", &["tokio", "std::fs", "rustix", "std::net", "SystemTime", "Instant"]),
    ("store", &["tokio", "async fn"]),
    ("unpack", &["tokio", "async fn"]),
    ("mount", &["tokio", "async fn"]),
    ("volume", &["tonic", "csi::v1"]),
];

fn files(module: &str) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![source.join(format!("{module}.rs"))];
    let mut directories = vec![source.join(module)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                directories.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found
}

/// The code of a file, without its unit tests and without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_use_only_the_layers_below_them() {
    let mut wrong = Vec::new();
    for (module, allowed) in MAY_USE {
        for file in files(module) {
            for part in code(&file).split("crate::").skip(1) {
                let used: String =
                    part.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
                let known =
                    used == module || EVERYBODYS.contains(&used.as_str()) || allowed.contains(&used.as_str());
                // `use crate::{a, b}` starts with a brace.
                if !known && !used.is_empty() {
                    wrong.push(format!("{} uses crate::{used}", file.display()));
                }
                if used.is_empty() && part.starts_with('{') {
                    for name in part[1..].split('}').next().unwrap_or_default().split(',') {
                        let name = name.trim().split("::").next().unwrap_or_default();
                        if !name.is_empty() && !EVERYBODYS.contains(&name) && !allowed.contains(&name) {
                            wrong.push(format!("{} uses crate::{name}", file.display()));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn layers_stay_free_of_what_they_must_not_know() {
    let mut wrong = Vec::new();
    for (module, words) in NEVER {
        for file in files(module) {
            let code = code(&file);
            let found = words.iter().filter(|word| code.contains(**word));
            wrong.extend(found.map(|word| format!("{} contains {word}", file.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_is_in_the_table() {
    let library =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs");
    let modules: BTreeSet<&str> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let listed: BTreeSet<&str> = MAY_USE.iter().map(|(module, _)| *module).collect();
    assert_eq!(modules, listed);
}

#[test]
fn unsafe_code_is_in_one_file_and_files_stay_readable() {
    for (module, _) in MAY_USE {
        for file in files(module) {
            let text = fs::read_to_string(&file).expect("a source file");
            assert!(module == "sys" || !text.contains("unsafe {"), "{} has unsafe code", file.display());
            assert!(text.lines().count() <= 800, "{} has more than 800 lines", file.display());
        }
    }
}
