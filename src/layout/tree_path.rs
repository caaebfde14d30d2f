//! Names of files in a volume: one safe relative path, checked once.

use std::fmt;

/// A path inside a tree: relative, `/`-separated, without `.`, `..`, empty parts or NUL.
///
/// *Invariant:* joined to a directory that holds no symlink it names something below that directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(String);

/// Bytes of one path component: `NAME_MAX` of every file system ocivol runs on.
const COMPONENT_LIMIT: usize = 255;
/// Bytes of a path; leaves room below `PATH_MAX` (4096) for where the tree is mounted.
const PATH_LIMIT: usize = 3072;
/// Directories above a file; deeper trees cost kernel stack and time for nothing.
const DEPTH_LIMIT: usize = 128;

impl TreePath {
    /// Checks `name`, as an annotation gave it. A leading `./` and a trailing `/` are common and harmless.
    ///
    /// # Errors
    /// The rule that the name breaks, in words.
    pub fn new(name: &str) -> Result<Self, &'static str> {
        if name.is_empty() {
            return Err("it is empty");
        }
        if name.starts_with('/') {
            return Err("it is absolute");
        }
        if name.len() > PATH_LIMIT {
            return Err("it is longer than 3072 bytes");
        }
        if name.contains('\0') {
            return Err("it contains NUL");
        }
        let mut parts = Vec::new();
        for part in name.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err("it contains '..'"),
                _ if part.len() > COMPONENT_LIMIT => return Err("a part is longer than 255 bytes"),
                _ => parts.push(part),
            }
        }
        if parts.is_empty() {
            return Err("it names the volume's root");
        }
        if parts.len() > DEPTH_LIMIT {
            return Err("it is deeper than 128 directories");
        }
        Ok(Self(parts.join("/")))
    }

    /// A path that the rules themselves give: it is safe.
    pub(super) fn known(path: &str) -> Self {
        debug_assert!(Self::new(path).is_ok_and(|safe| safe.0 == path), "{path}");
        Self(path.to_owned())
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directories above, outermost first: `a`, `a/b` for `a/b/c`.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(end, _)| &self.0[..end])
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t40_only_safe_names_pass() {
        let long_part = "a".repeat(256);
        let long_path = vec!["abcdefgh"; 600].join("/");
        let deep = vec!["d"; 200].join("/");
        for name in [
            "",
            "/",
            "/etc/x",
            "//x",
            "..",
            "../x",
            "a/../x",
            "a/..",
            "a/../../x",
            ".",
            "./",
            "a\0b",
            &long_part,
            &long_path,
            &deep,
        ] {
            assert!(TreePath::new(name).is_err(), "{name:?} was accepted");
        }
        for (name, normal) in [("a", "a"), ("./a//b/", "a/b"), ("a/./b", "a/b"), ("..a/b..", "..a/b..")] {
            assert_eq!(TreePath::new(name).expect(name).as_str(), normal);
        }
    }

    #[test]
    fn ancestors_come_outermost_first() {
        let path = TreePath::new("a/b/c").expect("safe");
        assert_eq!(path.ancestors().collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(TreePath::new("a").expect("safe").ancestors().count(), 0);
    }
}
