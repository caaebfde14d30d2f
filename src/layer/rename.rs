//! How the names of a layer become names of the tree.

use crate::layer::name::{Name, split};

/// How the names of a layer become names of the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rename {
    /// The directory that every name has to be in, before anything is removed.
    pub within: Name,
    /// Leading parts that are removed; what has no more is left out.
    pub strip: usize,
    /// The directory everything goes to.
    pub prefix: Name,
}

/// A path of the tree in two pieces, of which each may be empty: it is not put together, so that it takes no memory.
pub(in crate::layer) type Path<'a> = [&'a [u8]; 2];

/// The path of `name`; `None` when it is left out.
///
/// # Errors
/// Why the name may not be in the layer, in words.
pub(in crate::layer) fn renamed<'a>(
    rename: Option<&'a Rename>,
    name: Name<&'a [u8]>,
) -> Result<Option<Path<'a>>, String> {
    let Some(rename) = rename else { return Ok(Some([b"", name.bytes()])) };
    if !name.is_within(&rename.within) {
        return Err(format!("it is not in {:?}, which the layer's title names", rename.within));
    }
    let prefix = rename.prefix.as_bytes();
    if name.is_root() {
        // What an archive says of its own root is not said of a directory further down.
        return Ok((rename.strip == 0).then_some([prefix, b""]));
    }
    Ok(name.strip(rename.strip).map(|rest| [prefix, rest.bytes()]))
}

/// The directory that the path is in, and its last part; `None` for the root.
pub(in crate::layer) fn split_path([prefix, rest]: Path<'_>) -> Option<(Path<'_>, &[u8])> {
    match split(rest) {
        Some((parent, part)) => Some(([prefix, parent], part)),
        None => split(prefix).map(|(parent, part)| ([parent, b""], part)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).expect("safe")
    }

    /// What becomes of a name, and what is above it.
    fn becomes(rename: &Rename, from: &str) -> Option<(String, String)> {
        let from = name(from);
        let path = renamed(Some(rename), from.borrowed()).expect("it may be")?;
        let whole = |[prefix, rest]: Path<'_>| Name::below(prefix, rest).to_string();
        let parent =
            split_path(path).map(|(parent, part)| format!("{} | {}", whole(parent), part.escape_ascii()));
        Some((whole(path), parent.unwrap_or_default()))
    }

    #[test]
    fn names_lose_parts_and_get_others() {
        let rename = |within, strip, prefix| Rename { within: name(within), strip, prefix: name(prefix) };
        let is = |path: &str, parent: &str| Some((path.to_owned(), parent.to_owned()));
        assert_eq!(becomes(&rename("", 0, ""), "a/b"), is("a/b", "a | b"));
        assert_eq!(becomes(&rename("", 0, ""), "b"), is("b", " | b"));
        assert_eq!(becomes(&rename("", 0, ""), ""), is("", ""));
        assert_eq!(becomes(&rename("", 1, ""), "a/b"), is("b", " | b"));
        assert_eq!(becomes(&rename("", 1, ""), "a"), None);
        assert_eq!(becomes(&rename("", 1, "p/q"), ""), None);
        assert_eq!(becomes(&rename("", 0, "p/q"), ""), is("p/q", "p | q"));
        assert_eq!(becomes(&rename("", 0, "p"), ""), is("p", " | p"));
        assert_eq!(becomes(&rename("", 0, "p/q"), "b"), is("p/q/b", "p/q | b"));
        assert_eq!(becomes(&rename("a", 1, "p"), "a/b/c"), is("p/b/c", "p/b | c"));
        let outside = rename("a", 0, "");
        assert!(renamed(Some(&outside), name("ab").borrowed()).is_err());
    }
}
