//! Commands as the documents show them, and what they print.

/// A command of a document.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The heading that it stands below.
    pub heading: String,
    /// What is typed. A comment may be at its end.
    pub words: String,
    /// The lines below it.
    pub printed: Vec<String>,
}

/// The commands in the blocks of `text`, which begin with `$ `, in their order.
pub fn commands(text: &str) -> Vec<Shown> {
    let (mut found, mut heading, mut is_block) = (Vec::<Shown>::new(), String::new(), false);
    let (mut is_open, mut goes_on) = (false, false);
    for line in text.lines() {
        if line.starts_with("```") {
            (is_block, is_open, goes_on) = (!is_block, false, false);
            continue;
        }
        if !is_block {
            if let Some(title) = line.strip_prefix('#') {
                heading = title.trim_start_matches('#').trim().to_owned();
            }
            continue;
        }
        if let Some(words) = line.strip_prefix("$ ") {
            found.push(Shown { heading: heading.clone(), words: words.to_owned(), printed: Vec::new() });
            (is_open, goes_on) = (true, words.ends_with('\\'));
        } else if let Some(last) = found.last_mut().filter(|_| is_open) {
            if goes_on {
                last.words.push('\n');
                last.words.push_str(line);
                goes_on = line.ends_with('\\');
            } else {
                last.printed.push(line.to_owned());
            }
        }
    }
    for shown in &mut found {
        while shown.printed.last().is_some_and(|line| line.trim().is_empty()) {
            shown.printed.pop();
        }
    }
    found
}

/// Fails unless `printed` is what a document shows. There `…` stands for any text, and a line of it for any lines. How long something took,
/// how much is free, ports, and how wide columns are, are others each time.
pub fn compare(shown: &[String], printed: &str) -> Result<(), String> {
    let shown: Vec<String> = shown.iter().map(|line| normal(line)).collect();
    let printed: Vec<String> = printed.trim_end().lines().map(normal).collect();
    let printed: &[String] = if printed == [""] { &[] } else { &printed };
    if lines_match(&shown, printed) {
        return Ok(());
    }
    Err(format!("it prints\n{}\nand the document shows\n{}", printed.join("\n"), shown.join("\n")))
}

fn lines_match(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "…" => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..]))
        }
        Some((first, rest)) => {
            printed.split_first().is_some_and(|(line, more)| fits(first, line) && lines_match(rest, more))
        }
    }
}

/// Whether `text` is `pattern`, in which `…` is any text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// One blank between words, and a star for what is another each time.
fn normal(line: &str) -> String {
    let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    for at in 0..words.len() {
        if words[at].starts_with('[') && at + 1 == words.len() {
            words[at] = "[*]".into();
        }
        let is_measured = ["free", "ago", "ago;"].contains(&words[at].as_str()) && at >= 2;
        if is_measured && words[at - 2].starts_with(|first: char| first.is_ascii_digit()) {
            (words[at - 2], words[at - 1]) = ("*".into(), "*".into());
        }
        if let Some((host, rest)) = words[at].split_once("127.0.0.1:") {
            let rest = rest.trim_start_matches(|it: char| it.is_ascii_digit());
            words[at] = format!("{host}127.0.0.1:*{rest}");
        }
        // As the file system is mounted.
        words[at] = words[at].replace(",noatime", ",relatime");
        if words[at].contains("/ocivol-demo-") {
            words[at] = "/tmp/ocivol-demo-*".into();
        }
    }
    words.join(" ")
}

#[test]
fn what_is_shown_is_compared_with_what_is_printed() {
    let text = "# One\n```\n$ a \\\n  b  # why\nx  1 s\n…\n```\ntext\n$ no\n## Two\n```console\n$ c\n\n$ d\ny\n\n```\n";
    let found = commands(text);
    let words: Vec<_> = found.iter().map(|it| (it.heading.as_str(), it.words.as_str())).collect();
    assert_eq!(words, [("One", "a \\\n  b  # why"), ("Two", "c"), ("Two", "d")]);
    assert_eq!(found[2].printed, ["y"]);
    assert!(found[1].printed.is_empty());
    let compare = |shown: &[&str], printed: &str| {
        compare(&shown.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), printed).is_ok()
    };
    assert!(compare(&["a  b", "…"], "a b\nc\nd\n"));
    assert!(compare(&["sha256:…  x", "1 tree, 49.00 GiB free"], "sha256:12 x\n1 tree,  3 MiB free"));
    assert!(compare(
        &["v1 was x 3 seconds ago; y", "z 127.0.0.1:1/m  [1s]"],
        "v1 was x 1 minute ago; y\nz 127.0.0.1:2/m [8ms]"
    ));
    assert!(compare(&[], "") && compare(&["…"], ""));
    for (shown, printed) in [(&["a", "b"] as &[&str], "a"), (&["a"], "a\nb"), (&["a…c"], "a b"), (&[], "a")]
    {
        assert!(!compare(shown, printed), "{shown:?} {printed}");
    }
}
