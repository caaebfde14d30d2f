//! `include` and `exclude`: which files of an artifact are wanted.

use std::collections::BTreeSet;

use globset::{GlobBuilder, GlobMatcher};

use super::{Error, TreePath};

/// Globs on paths. A file is kept when some `include` matches it (or there is none) and no `exclude` does.
///
/// Globs are read as in a `.gitignore`: without a slash a pattern matches a name at any depth, with one it
/// matches the path from the root, `*` does not cross `/`, `**` does, and a pattern that matches a directory
/// matches everything below it.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    matcher: GlobMatcher,
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
        Ok(Self { include: patterns(include)?, exclude: patterns(exclude)? })
    }

    /// Whether everything is wanted.
    pub fn is_everything(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// The patterns in a normal form: equal for equal selections, whatever their order.
    pub fn normal_form(&self) -> [BTreeSet<&str>; 2] {
        [&self.include, &self.exclude]
            .map(|patterns| patterns.iter().map(|pattern| pattern.text.as_str()).collect())
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
        let nothing = |attribute, pattern: &str| Error::NothingSelected {
            attribute,
            pattern: pattern.to_owned(),
            paths: quoted(),
        };
        for pattern in &self.include {
            if !paths.clone().any(|path| pattern.matches(path)) {
                return Err(nothing("include", &pattern.text));
            }
        }
        let wanted = |path: &&TreePath| {
            (self.include.is_empty() || self.include.iter().any(|pattern| pattern.matches(path)))
                && !self.exclude.iter().any(|pattern| pattern.matches(path))
        };
        let kept: BTreeSet<String> = paths.clone().filter(wanted).map(TreePath::to_string).collect();
        match (kept.is_empty(), self.exclude.first()) {
            (true, Some(pattern)) => Err(Error::NothingSelected {
                attribute: "exclude",
                pattern: pattern.text.clone(),
                paths: format!("{} (all are excluded)", quoted()),
            }),
            _ => Ok(kept),
        }
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |reason: String| InvalidPattern { pattern: text.to_owned(), reason };
        let trimmed = text.trim_end_matches('/');
        let anchored = trimmed.trim_start_matches("./").trim_start_matches('/');
        if anchored.is_empty() || anchored == "." {
            return Err(invalid("it names the root".into()));
        }
        let glob = if trimmed.contains('/') { anchored.to_owned() } else { format!("**/{anchored}") };
        let matcher = GlobBuilder::new(&glob)
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|error| invalid(error.kind().to_string()))?
            .compile_matcher();
        Ok(Self { text: text.to_owned(), matcher })
    }

    fn matches(&self, path: &TreePath) -> bool {
        self.matcher.is_match(path.as_str()) || path.ancestors().any(|above| self.matcher.is_match(above))
    }
}

fn patterns(list: &str) -> Result<Vec<Pattern>, InvalidPattern> {
    let parts = split(list);
    if parts.len() > PATTERN_LIMIT {
        return Err(InvalidPattern {
            pattern: parts[0].to_owned(),
            reason: format!("the list holds more than {PATTERN_LIMIT} patterns"),
        });
    }
    parts.into_iter().map(Pattern::new).collect()
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
