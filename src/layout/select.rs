//! `include` and `exclude`: which files of an artifact are wanted.

use std::collections::BTreeSet;

use globset::{Candidate, Glob, GlobBuilder, GlobSet};

use crate::layer::name::shown;
use crate::layout::error::Error;

/// Globs on paths. A file is kept when some `include` matches it (or there is none) and no `exclude` does.
///
/// Without a slash a pattern matches a name at any depth, with one it matches the path from the root; a slash at the end
/// means nothing. `*` does not cross `/`, `**` does, and a pattern that matches a directory matches everything below it.
/// What is not wanted is said with `exclude`, not with a `!` in front.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    include: Patterns,
    exclude: Patterns,
}

/// A list of globs, as text: compiled they take a hundred times as much memory, and are only needed in a walk.
#[derive(Debug, Clone, Default)]
struct Patterns {
    texts: Vec<String>,
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
/// Bytes of one list.
const LIST_LIMIT: usize = 8 * 1024;
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

    /// Whether everything is wanted.
    pub fn is_all(&self) -> bool {
        self.include.texts.is_empty() && self.exclude.texts.is_empty()
    }

    /// Begins to look at paths.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            selection: self,
            include: self.include.compile(),
            exclude: self.exclude.compile(),
            included: vec![false; self.include.texts.len()],
            excluded: vec![false; self.exclude.texts.len()],
            quoted: Vec::new(),
            any: false,
        }
    }
}

/// A look at all paths that there are, each directory before what is in it.
#[derive(Debug)]
pub struct Walk<'a> {
    selection: &'a Selection,
    include: GlobSet,
    exclude: GlobSet,
    /// Whether it matched something, by number of the pattern.
    included: Vec<bool>,
    excluded: Vec<bool>,
    quoted: Vec<String>,
    any: bool,
}

/// What is known of a path, and holds for all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    included: bool,
    excluded: bool,
}

impl Verdict {
    /// Whether it is wanted.
    pub fn is_wanted(self) -> bool {
        self.included && !self.excluded
    }
}

impl Walk<'_> {
    /// The verdict on the root.
    pub fn start(&self) -> Verdict {
        Verdict { included: self.selection.include.texts.is_empty(), excluded: false }
    }

    /// The verdict on `path`, whose directory has the verdict `above`.
    pub fn judge(&mut self, path: &[u8], above: Verdict, leaf: bool) -> Verdict {
        let mut verdict = above;
        let candidate = Candidate::from_bytes(path);
        if !self.selection.include.texts.is_empty() {
            for number in self.include.matches_candidate(&candidate) {
                self.included[number] = true;
                verdict.included = true;
            }
        }
        if self.excluded.contains(&false) {
            for number in self.exclude.matches_candidate(&candidate) {
                self.excluded[number] = true;
                verdict.excluded = true;
            }
        } else if !verdict.excluded && !self.exclude.is_empty() {
            verdict.excluded = self.exclude.is_match_candidate(&candidate);
        }
        if leaf {
            match self.quoted.len() {
                0..QUOTED_PATHS => self.quoted.push(shown(path)),
                QUOTED_PATHS => self.quoted.push("…".into()),
                _ => {}
            }
            self.any |= verdict.is_wanted();
        }
        verdict
    }

    /// The verdict on the file at `path`, after all directories above it.
    pub fn judge_alone(&mut self, path: &[u8]) -> Verdict {
        let mut verdict = self.start();
        for slash in (0..path.len()).filter(|at| path[*at] == b'/') {
            verdict = self.judge(&path[..slash], verdict, false);
        }
        self.judge(path, verdict, true)
    }

    /// Checks that the patterns meant something.
    ///
    /// # Errors
    /// [`Error::NothingSelected`] when a pattern matched no path, or no file is wanted: it is more likely a typing error
    /// than meant, and what it costs is seen late.
    pub fn finish(self) -> Result<(), Error> {
        let Selection { include, exclude } = self.selection;
        let nothing = |attribute, pattern: &str, note: &str| Error::NothingSelected {
            attribute,
            pattern: pattern.to_owned(),
            paths: self.quoted.join(", ") + note,
        };
        if let Some(number) = self.included.iter().position(|matched| !matched) {
            return Err(nothing("include", &include.texts[number], ""));
        }
        if let Some(number) = self.excluded.iter().position(|matched| !matched) {
            return Err(nothing("exclude", &exclude.texts[number], ""));
        }
        match (self.any, exclude.texts.first()) {
            (false, Some(pattern)) => Err(nothing("exclude", pattern, " (all are excluded)")),
            _ => Ok(()),
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
        if list.len() > LIST_LIMIT {
            return Err(invalid(&texts[0], format!("the list has more than {LIST_LIMIT} bytes")));
        }
        let mut globs = GlobSet::builder();
        for text in &texts {
            globs.add(glob(text).map_err(|reason| invalid(text, reason))?);
        }
        globs.build().map_err(|error| invalid(list, error.to_string()))?;
        Ok(Self { texts })
    }

    /// The globs, which were compiled before once.
    fn compile(&self) -> GlobSet {
        let mut globs = GlobSet::builder();
        for text in &self.texts {
            if let Ok(glob) = glob(text) {
                globs.add(glob);
            }
        }
        globs.build().unwrap_or_default()
    }
}

/// Reads one pattern.
fn glob(text: &str) -> Result<Glob, String> {
    if text.starts_with('!') {
        return Err("a '!' in front means nothing here: use exclude, or write it as \\!".into());
    }
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
        let selection = Selection::new(include, exclude).expect("patterns");
        let mut walk = selection.walk();
        for path in PATHS {
            walk.judge_alone(path.as_bytes());
        }
        walk.finish()?;
        let mut kept: Vec<String> = PATHS.map(str::to_owned).into();
        let mut again = selection.walk();
        kept.retain(|path| again.judge_alone(path.as_bytes()).is_wanted());
        kept.sort();
        Ok(kept)
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
        let error = select("", "*.json,*.bin").expect_err("no bin").to_string();
        assert!(error.contains("exclude pattern \"*.bin\"") && error.contains("onnx/model.onnx"), "{error}");
        // What is in an excluded directory is matched, too.
        assert!(select("", "onnx,onnx/fp16").is_ok());
        let error = select("", "*").expect_err("nothing left").to_string();
        assert!(error.contains("exclude"), "{error}");
    }

    #[test]
    fn bad_patterns_are_refused() {
        for pattern in ["[", "a{b", "/", "./", "!*.json"] {
            assert!(Selection::new(pattern, "").is_err(), "{pattern:?} was accepted");
        }
        assert!(Selection::new("\\!x", "").expect("escaped").walk().judge_alone(b"!x").is_wanted());
        assert!(Selection::new(&"a,".repeat(PATTERN_LIMIT + 1), "").is_err());
    }
}
