//! `include` and `exclude`: which files of an artifact are wanted.

use std::collections::BTreeSet;

use globset::{Glob, GlobBuilder, GlobSet};

use super::{Error, TreePath};

/// Globs on paths. A file is kept when some `include` matches it (or there is none) and no `exclude` does.
///
/// Globs are read as in a `.gitignore`: without a slash a pattern matches a name at any depth, with one it
/// matches the path from the root, `*` does not cross `/`, `**` does, and a pattern that matches a directory
/// matches everything below it.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    include: Patterns,
    exclude: Patterns,
}

/// A list of globs, matched together.
#[derive(Debug, Clone, Default)]
struct Patterns {
    texts: Vec<String>,
    globs: GlobSet,
}

/// A pattern cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a glob: {pattern:?}: {reason}")]
pub struct InvalidPattern {
    pattern: String,
    reason: String,
}

/// Patterns in one list.
const PATTERN_LIMIT: usize = 128;
/// Paths quoted in an error.
const QUOTED_PATHS: usize = 12;

impl Selection {
    /// Reads two lists of patterns, separated by newlines or by commas outside `{}`.
    ///
    /// # Errors
    /// [`InvalidPattern`] when a pattern is no glob or a list is too long.
    pub fn new(include: &str, exclude: &str) -> Result<Self, InvalidPattern> {
        Ok(Self { include: Patterns::new(include)?, exclude: Patterns::new(exclude)? })
    }

    /// The patterns in a normal form: equal for equal selections, whatever their order.
    pub fn normal_form(&self) -> [BTreeSet<&str>; 2] {
        [&self.include, &self.exclude].map(|patterns| patterns.texts.iter().map(String::as_str).collect())
    }

    /// The paths that are wanted.
    ///
    /// # Errors
    /// [`Error::NothingSelected`] when an `include` pattern matches no path, or nothing is left.
    pub fn apply<'a>(
        &self,
        paths: &(impl Iterator<Item = &'a TreePath> + Clone),
    ) -> Result<BTreeSet<String>, Error> {
        let quoted = || {
            let mut names: Vec<&str> = paths.clone().map(TreePath::as_str).take(QUOTED_PATHS + 1).collect();
            if names.len() > QUOTED_PATHS {
                names[QUOTED_PATHS] = "…";
            }
            names.join(", ")
        };
        let nothing = |attribute, pattern: &str, note: &str| Error::NothingSelected {
            attribute,
            pattern: pattern.to_owned(),
            paths: quoted() + note,
        };
        let mut unmatched: BTreeSet<usize> = (0..self.include.texts.len()).collect();
        let mut kept = BTreeSet::new();
        for path in paths.clone() {
            let included = self.include.matching(path);
            for number in &included {
                unmatched.remove(number);
            }
            let wanted = self.include.texts.is_empty() || !included.is_empty();
            if wanted && self.exclude.matching(path).is_empty() {
                kept.insert(path.to_string());
            }
        }
        if let Some(&number) = unmatched.first() {
            return Err(nothing("include", &self.include.texts[number], ""));
        }
        match (kept.is_empty(), self.exclude.texts.first()) {
            (true, Some(pattern)) => Err(nothing("exclude", pattern, " (all are excluded)")),
            _ => Ok(kept),
        }
    }
}

impl Patterns {
    fn new(list: &str) -> Result<Self, InvalidPattern> {
        let texts: Vec<String> = split(list).into_iter().map(str::to_owned).collect();
        let invalid = |pattern: &str, reason: String| InvalidPattern { pattern: pattern.to_owned(), reason };
        if texts.len() > PATTERN_LIMIT {
            return Err(invalid(&texts[0], format!("the list holds more than {PATTERN_LIMIT} patterns")));
        }
        let mut globs = GlobSet::builder();
        for text in &texts {
            globs.add(glob(text).map_err(|reason| invalid(text, reason))?);
        }
        let globs = globs.build().map_err(|error| invalid(list, error.to_string()))?;
        Ok(Self { texts, globs })
    }

    /// The numbers of the patterns that match `path` or a directory above it.
    fn matching(&self, path: &TreePath) -> BTreeSet<usize> {
        if self.texts.is_empty() {
            return BTreeSet::new();
        }
        let mut found: BTreeSet<usize> = self.globs.matches(path.as_str()).into_iter().collect();
        for above in path.ancestors() {
            found.extend(self.globs.matches(above));
        }
        found
    }
}

/// Reads one pattern.
fn glob(text: &str) -> Result<Glob, String> {
    let trimmed = text.trim_end_matches('/');
    let anchored = trimmed.trim_start_matches("./").trim_start_matches('/');
    if anchored.is_empty() || anchored == "." {
        return Err("it names the root".into());
    }
    let glob = if trimmed.contains('/') { anchored.to_owned() } else { format!("**/{anchored}") };
    let mut builder = GlobBuilder::new(&glob);
    builder.literal_separator(true).backslash_escape(true);
    builder.build().map_err(|error| error.kind().to_string())
}

/// Splits at newlines, and at commas that are not inside `{}`.
fn split(list: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    list.split(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == '\n' || (character == ',' && depth == 0)
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 6] = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "onnx/model.onnx",
        "onnx/fp16/model.onnx",
        "docs/a,b.md",
    ];

    fn select(include: &str, exclude: &str) -> Result<Vec<String>, Error> {
        let paths: Vec<TreePath> = PATHS.iter().map(|path| TreePath::new(path).expect("safe")).collect();
        let selection = Selection::new(include, exclude).expect("patterns");
        selection.apply(&paths.iter()).map(|kept| kept.into_iter().collect())
    }

    #[test]
    fn patterns_combine() {
        let table: [(&str, &str, &[&str]); 9] = [
            ("*.json", "", &["config.json"]),
            ("*.onnx", "", &["onnx/fp16/model.onnx", "onnx/model.onnx"]),
            ("onnx/*.onnx", "", &["onnx/model.onnx"]),
            ("/onnx/*.onnx\n*.json", "", &["config.json", "onnx/model.onnx"]),
            ("onnx", "fp16", &["onnx/model.onnx"]),
            ("onnx/", "", &["onnx/fp16/model.onnx", "onnx/model.onnx"]),
            ("*.{json,onnx}, docs", "**/fp16/**", &["config.json", "docs/a,b.md", "onnx/model.onnx"]),
            ("", "*.onnx,docs,*.json", &["model-1.safetensors", "model-2.safetensors"]),
            ("model-[1].*", "", &["model-1.safetensors"]),
        ];
        for (include, exclude, expected) in table {
            assert_eq!(select(include, exclude).expect(include), expected, "{include:?} {exclude:?}");
        }
    }

    #[test]
    fn a_pattern_without_a_match_names_what_there_is() {
        let error = select("*.json,*.gguf", "").expect_err("no gguf").to_string();
        assert!(error.contains("*.gguf") && error.contains("onnx/model.onnx"), "{error}");
        let error = select("", "*").expect_err("nothing left").to_string();
        assert!(error.contains("exclude"), "{error}");
    }

    #[test]
    fn bad_patterns_are_refused() {
        for pattern in ["[", "a{b", "/", "./"] {
            assert!(Selection::new(pattern, "").is_err(), "{pattern:?} was accepted");
        }
        assert!(Selection::new(&"a,".repeat(PATTERN_LIMIT + 1), "").is_err());
    }
}
