//! The rooms of the house: which may use which, read from the paths in the code.
//!
//! `ROOMS` is the drawing. A path is written out from `crate`, so that what it says is what it uses: `super` is for unit tests
//! alone, and nothing is re-exported. Files of one room may use each other, and never in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms that all others may use.
const EVERYBODYS: [&str; 3] = ["failure", "tenant", "host::failpoint"];

/// A room, and the rooms that it may use beside those. A room inside another has a line of its own.
#[rustfmt::skip]
const ROOMS: [(&str, &[&str]); 31] = [
    ("failure",        &[]),
    ("tenant",         &[]),
    ("oci",            &[]),
    ("layer",          &["oci"]),
    ("layout",         &["oci", "layer"]),
    ("host",           &["layer"]),
    ("registry",       &["host", "oci"]),
    ("kube",           &["host", "oci", "registry::credentials"]),
    ("store::space",   &["oci", "store::error", "store::key"]),
    ("store::disk",    &["store::error", "store::space"]),
    ("store::durable", &["oci", "store::disk", "store::error", "store::key", "store::content::ingest"]),
    ("store::access",  &["oci", "store::disk", "store::error", "store::durable"]),
    ("store::content", &["host", "oci", "layer", "layout", "store::access::origin", "store::disk", "store::durable", "store::error", "store::key", "store::space"]),
    ("store::usage",   &["host::interleaving", "oci", "store::disk", "store::durable", "store::error", "store::key"]),
    ("store::collect", &["host", "oci", "store"]),
    ("store",          &["host", "oci", "layer", "layout", "store"]),
    ("unpack",         &["host", "oci", "layer"]),
    ("mount",          &["host", "oci", "layer", "layout"]),
    ("transfer",       &["host", "oci", "layer", "layout", "registry", "store", "unpack"]),
    ("pull",           &["host", "oci", "layout", "registry", "store", "transfer"]),
    ("warm",           &["host"]),
    ("volume",         &["host", "kube", "oci", "layer", "layout", "registry", "store", "transfer::error", "transfer::flight", "mount", "pull", "warm"]),
    ("prepull",        &["kube", "oci", "pull::error", "pull::outcome", "pull::progress", "pull::remote", "pull::request", "registry", "store::key", "store::usage::pins", "volume"]),
    ("provision",      &["host", "layout::error", "oci", "pull::choose", "pull::remote", "registry", "volume::attributes", "volume::list", "volume::permits"]),
    ("csi",            &["host", "kube::pull_secrets", "provision", "registry", "volume"]),
    ("control",        &["host", "layer", "oci", "pull", "registry", "store::collect::report", "store::fsck::report", "transfer::error", "volume"]),
    ("telemetry",      &["host"]),
    ("demo",           &["host", "oci", "csi"]),
    ("node",           &["host", "kube", "oci", "mount", "prepull", "pull", "registry", "store::space", "volume", "warm::budget", "csi", "control", "telemetry"]),
    ("controller",     &["host", "csi", "kube::cluster", "node::bad_flag", "node::flag_values", "node::health", "node::pull_flags", "node::shutdown", "prepull::coordinator", "prepull::nodes", "provision", "registry", "telemetry", "volume::permits"]),
    ("cli",            &["host", "oci", "layout", "mount", "pull", "registry", "store::disk", "store::space", "store::collect::report", "store::fsck::report", "volume", "control", "controller", "csi", "demo", "node", "telemetry"]),
];

/// Words that the code of a room does not contain.
const NEVER: [(&str, &[&str]); 8] = [
    ("oci", &["tokio", "std::fs", "std::net::Tcp", "SystemTime", "Instant"]),
    ("layout", &["tokio", "std::fs", "std::net", "SystemTime", "Instant"]),
    ("layer", &["tokio", "std::fs", "rustix", "std::net", "SystemTime", "Instant"]),
    ("store", &["tokio", "async fn"]),
    ("unpack", &["tokio", "async fn"]),
    ("mount", &["tokio", "async fn"]),
    ("warm", &["tokio", "async fn"]),
    ("volume", &["tonic", "csi::v1"]),
];

/// The only file with unsafe code.
const UNSAFE: &str = "host::sys";
/// Lines of a file.
const LINES: usize = 800;

/// A source file, by the path of its module: `store::blobs`.
struct Source {
    module: String,
    text: String,
    /// Without its unit tests and without comments.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let below = path.strip_prefix(&root).expect("below").with_extension("");
            let parts: Vec<_> = below.iter().map(|part| part.to_str().expect("UTF-8")).collect();
            let module = parts.join("::");
            if module == "main" || module == "lib" {
                continue;
            }
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let tests =
                ["#[cfg(test)]\nmod tests", "#[cfg(test)]\npub(crate) mod tests", "#[cfg(test)]\npub(in"];
            let end = tests.iter().filter_map(|start| text.find(start)).min().unwrap_or(text.len());
            let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
            let code = lines.collect::<Vec<_>>().join("\n");
            found.push(Source { module, text, code });
        }
    }
    found.sort_by(|one, two| one.module.cmp(&two.module));
    found
}

/// Every path from `crate` in `code`, with groups in braces written out.
fn paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // What may see an item is not what it uses.
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| !code[..*at].ends_with("pub(in ")) {
        let rest = &code[at + "crate::".len()..];
        write_out(String::new(), rest, &mut found);
    }
    found
}

/// Adds `prefix` and the path, or group of paths, that `text` begins with; returns what follows.
fn write_out<'a>(mut prefix: String, mut text: &'a str, found: &mut BTreeSet<String>) -> &'a str {
    loop {
        text = text.trim_start();
        if let Some(group) = text.strip_prefix('{') {
            text = group;
            loop {
                text = write_out(prefix.clone(), text, found).trim_start();
                text = text.strip_prefix(',').unwrap_or(text).trim_start();
                if let Some(rest) = text.strip_prefix('}') {
                    return rest;
                }
                if text.is_empty() {
                    return text;
                }
            }
        }
        let length =
            text.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len());
        prefix.push_str(&text[..length]);
        text = &text[length..];
        let Some(rest) = text.strip_prefix("::") else {
            found.insert(prefix);
            let end = text.find([',', '}', ';']).unwrap_or(text.len());
            return if text.starts_with(" as ") { &text[end..] } else { text };
        };
        prefix.push_str("::");
        text = rest;
    }
}

/// The longest of `names` that `path` begins with.
fn longest<'a>(names: impl IntoIterator<Item = &'a str>, path: &str) -> Option<&'a str> {
    let begins =
        |name: &&str| path == *name || path.strip_prefix(*name).is_some_and(|rest| rest.starts_with("::"));
    names.into_iter().filter(begins).max_by_key(|name| name.len())
}

fn room_of(module: &str) -> Option<&'static str> {
    longest(ROOMS.iter().map(|(room, _)| *room), module)
}

/// Which files each file uses.
fn uses(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let names: Vec<&str> = sources.iter().map(|source| source.module.as_str()).collect();
    let of = |source: &Source| -> BTreeSet<&str> {
        let used = paths(&source.code).into_iter().filter_map(|path| longest(names.iter().copied(), &path));
        used.filter(|used| *used != source.module).collect()
    };
    sources.iter().map(|source| (source.module.as_str(), of(source))).collect()
}

#[test]
fn rooms_use_only_what_the_drawing_shows() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (file, used) in uses(&sources) {
        let Some(room) = room_of(file) else {
            wrong.push(format!("{file} is in no room"));
            continue;
        };
        let allowed = ROOMS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| allowed);
        for other in used {
            let other_room = room_of(other).unwrap_or(other);
            let is_known = other_room == room
                || longest(EVERYBODYS, other).is_some()
                || longest(allowed.iter().copied(), other).is_some();
            if !is_known {
                wrong.push(format!("{file} uses {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_say_what_they_use() {
    let mut wrong = Vec::new();
    for source in sources() {
        for line in source.code.lines() {
            let inner = line.replace("pub(super)", "").replace("pub(in super", "");
            if inner.contains("super::") {
                wrong.push(format!("{}: {}", source.module, line.trim()));
            }
            let line = line.trim_start();
            if line.starts_with("pub use ") || (line.starts_with("pub(") && line.contains(") use ")) {
                wrong.push(format!("{} re-exports: {line}", source.module));
            }
            if line.starts_with("use crate::") && line.ends_with("*;") {
                wrong.push(format!("{} takes all of a module: {line}", source.module));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let sources = sources();
    let uses = uses(&sources);
    /// Files that are done, and those on the way.
    fn visit<'a>(
        at: &'a str,
        uses: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
        circles: &mut Vec<String>,
    ) {
        if let Some(began) = way.iter().position(|file| *file == at) {
            circles.push(format!("{} -> {at}", way[began..].join(" -> ")));
            return;
        }
        if !done.insert(at) {
            return;
        }
        way.push(at);
        for next in uses.get(at).into_iter().flatten() {
            visit(next, uses, way, done, circles);
        }
        way.pop();
    }
    let (mut done, mut circles) = (BTreeSet::new(), Vec::new());
    for file in uses.keys() {
        visit(file, &uses, &mut Vec::new(), &mut done, &mut circles);
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn layers_stay_free_of_what_they_must_not_know() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (room, words) in NEVER {
            if longest([room], &source.module).is_some() {
                let found = words.iter().filter(|word| source.code.contains(**word));
                wrong.extend(found.map(|word| format!("{} contains {word}", source.module)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_is_in_a_room() {
    let library =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs");
    let modules: BTreeSet<&str> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let listed: BTreeSet<&str> = ROOMS.iter().filter_map(|(room, _)| room.split("::").next()).collect();
    assert_eq!(modules, listed);
}

#[test]
fn unsafe_code_is_in_one_file_and_files_stay_readable() {
    for source in sources() {
        let name = &source.module;
        assert!(name == UNSAFE || !source.text.contains("unsafe {"), "{name} has unsafe code");
        assert!(source.text.lines().count() <= LINES, "{name} has more than {LINES} lines");
    }
}

#[test]
fn the_reader_of_paths_sees_groups() {
    let code = "use crate::a::{b::C, d::{E, F as G}};\nlet x = crate::h::i(1, crate::j);";
    let expected = ["a::b::C", "a::d::E", "a::d::F", "h::i", "j"];
    assert_eq!(paths(code), expected.map(str::to_owned).into());
}
