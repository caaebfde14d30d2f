//! What `ocivol inspect` prints for people.

use indicatif::BinaryBytes;

use crate::cli::inspected::{CREATED, File, Inspected};
use crate::cli::output::{counted, short};

/// Characters of an annotation that are shown.
const VALUE: usize = 100;

/// For people.
pub(super) fn text(found: &Inspected) -> String {
    let mut lines = vec![format!("reference  {}", found.reference), format!("digest     {}", found.digest)];
    let chosen = found.manifest.iter().filter(|digest| **digest != found.digest);
    lines.extend(chosen.map(|digest| format!("manifest   {digest} (chosen from the index)")));
    lines.push(format!("type       {}", found.artifact_type.as_deref().unwrap_or(&found.config_type)));
    match found.family {
        Some(family) => lines.push(format!("family     {family}: {}", found.rule)),
        None => lines.push(format!("family     none: {}", found.rule)),
    }
    lines.extend(found.created.iter().map(|time| format!("created    {time}")));
    let annotations = found.annotations.iter().filter(|(key, _)| *key != CREATED);
    lines.extend(annotations.map(|(key, value)| format!("annotation {key}={}", start(value))));
    if !found.files.is_empty() {
        lines.push(format!("size       {} in {}", BinaryBytes(found.size), parts(&found.files)));
    }
    for file in &found.files {
        let size = BinaryBytes(file.size).to_string();
        lines.push(format!("  {size:>11}  {}  {}", &file.digest, place(file)));
    }
    lines.push(format!("in store   {}", stored(found)));
    for child in &found.children {
        let size = BinaryBytes(child.size).to_string();
        let known = [child.platform.as_deref(), child.artifact_type.as_deref()];
        let mut what: Vec<String> = known.into_iter().flatten().map(str::to_owned).collect();
        if what.is_empty() {
            what.push(child.media_type.clone());
        }
        what.push(size);
        what.extend(child.annotations.iter().map(|(key, value)| format!("{key}={}", start(value))));
        lines.push(format!("child      {}  {}", child.digest, what.join(", ")));
    }
    for referrer in &found.referrers {
        let size = BinaryBytes(referrer.size).to_string();
        let kind = referrer.artifact_type.as_deref().unwrap_or(&referrer.media_type);
        let of = if Some(&referrer.subject) == found.manifest.as_ref() { "" } else { ", of the index" };
        lines.push(format!("referrer   {}  {kind}, {size}{of}", referrer.digest));
    }
    // Names and types are the registry's words: they must not speak to the terminal.
    let safe = lines
        .iter()
        .map(|line| line.chars().map(|it| if it.is_control() { '\u{fffd}' } else { it }).collect());
    safe.collect::<Vec<String>>().join("\n")
}

/// The value of an annotation, which may be a document, as far as a line goes.
fn start(value: &str) -> String {
    match value.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}…", value.get(..end).unwrap_or_default()),
        None => value.to_owned(),
    }
}

/// How many files and archives there are, and nothing of what there is none of.
fn parts(files: &[File]) -> String {
    let archives = files.iter().filter(|file| file.archive.is_some()).count() as u64;
    let named = files.iter().filter(|file| file.path.is_some()).count() as u64;
    let layers = files.len() as u64 - archives - named;
    let all = [(named, "file"), (archives, "archive"), (layers, "layer")];
    let some = all.iter().filter(|(count, _)| *count > 0).map(|(count, what)| counted(*count, what));
    some.collect::<Vec<_>>().join(" and ")
}

fn place(file: &File) -> String {
    match (&file.path, &file.archive) {
        (Some(path), _) => path.clone(),
        (None, Some(archive)) if archive.at == "/" => "(archive, unpacked at the root)".to_owned(),
        (None, Some(archive)) => format!("(archive, unpacked at {})", archive.at),
        (None, None) => format!("({})", file.media_type),
    }
}

/// What of it is in the store, in words.
fn stored(found: &Inspected) -> String {
    let content = match found.here {
        0 => "nothing of its content".to_owned(),
        here if here >= found.size => "all of its content".to_owned(),
        here => format!("{} of its content", BinaryBytes(here)),
    };
    match &found.store {
        None => content,
        Some(known) if known.is_current => format!("{} (this one)", short(&known.digest)),
        Some(known) => format!("{} (older); {content}", short(&known.digest)),
    }
}
