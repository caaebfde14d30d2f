//! Messages in the words of who reads them: errors are written for the events of pods, and on a command line attributes are flags,
//! and nobody unpublishes.
//!
//! What is quoted in a message is somebody's text, and stays as it is; so does whatever is not one of these phrases as it is written in
//! the error.

/// What a message begins with, and with what on a command line.
const BEGINNINGS: [(&str, &str); 14] = [
    ("volume attribute reference: ", ""),
    ("volume attribute include or exclude: ", "--include or --exclude: "),
    ("volume attribute pullPolicy", "--pull-policy"),
    ("volume attribute platform", "--platform"),
    ("volume attribute artifactType", "--artifact-type"),
    ("volume attribute layout", "--layout"),
    ("volume attribute unpack", "--unpack"),
    ("volume attribute stripComponents", "--strip-components"),
    ("volume attribute variant", "--variant"),
    ("volume attribute readable", "--readable"),
    ("volume attribute path", "--path"),
    ("volume attribute exec", "--exec"),
    (
        "stripComponents is for archives inside artifacts",
        "--strip-components is for archives inside artifacts",
    ),
    ("unpack is for archives inside artifacts", "--unpack is for archives inside artifacts"),
];

/// What is between, where a word begins.
const PHRASES: [(&str, &str); 22] = [
    ("and pullPolicy is Never;", "and --pull-policy is Never;"),
    ("layout: auto", "--layout auto"),
    ("layout: blobs", "--layout blobs"),
    ("layout: oci-layout", "--layout oci-layout"),
    ("layout: ollama", "--layout ollama"),
    ("unpack: never leaves", "--unpack never leaves"),
    ("include pattern ", "--include pattern "),
    ("exclude pattern ", "--exclude pattern "),
    (
        "with the attribute platform, artifactType or variant, or name",
        "with --platform, --artifact-type or --variant, or name",
    ),
    ("with the attribute artifactType or variant, or name", "with --artifact-type or --variant, or name"),
    ("with the attribute platform", "with --platform"),
    ("leave out artifactType and variant, or", "leave out --artifact-type and --variant, or"),
    ("leave out platform, or", "leave out --platform, or"),
    ("(attribute path): ", "(--path): "),
    ("the name and the tag in `reference`", "the name and the tag"),
    ("the registry's name in `reference`, and", "the registry's name, and"),
    ("network and DNS of the node", "network and DNS of this machine"),
    ("check user name and password in the volume's secret", "log in again, with `docker login` for example"),
    ("does not say whether this pod may read it", "does not say whether you may read it"),
    (
        "limits the rate of requests (429); it is tried again later",
        "limits the rate of requests (429); try again later",
    ),
    ("is in use: Device or resource busy (os error 16); it is tried again;", "is in use;"),
    ("is in use: Device or resource busy (os error 16)", "is in use"),
];

/// What a message ends with.
const ENDINGS: [(&str, &str); 4] = [
    (" with other arguments; unpublish it first", " mounted with other flags; unmount it first"),
    ("; unpublish it first", "; unmount it first"),
    ("; it is tried again", ""),
    (": it is the directory of targets itself", ": it is the root directory"),
];

/// `message` for who has a command line.
pub fn on_the_command_line(message: &str) -> String {
    let begun = BEGINNINGS.iter().find_map(|(from, to)| Some(format!("{to}{}", word_after(message, from)?)));
    let text = begun.unwrap_or_else(|| message.to_owned());
    let ended = ENDINGS.iter().find_map(|(from, to)| Some(format!("{}{to}", text.strip_suffix(from)?)));
    let text = ended.unwrap_or(text);
    let parts = quoted(&text).into_iter().map(|(part, is_quoted)| match is_quoted {
        true => part.to_owned(),
        false => PHRASES.iter().fold(part.to_owned(), |part, (from, to)| replace(&part, from, to)),
    });
    logged_in(&parts.collect::<String>())
}

/// What comes after `beginning`, if `text` begins with that and it is no part of a longer word.
fn word_after<'a>(text: &'a str, beginning: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(beginning)?;
    (beginning.ends_with(' ') || !rest.starts_with(is_of_word)).then_some(rest)
}

/// Replaces `from` where it stands as words of their own.
fn replace(text: &str, from: &str, to: &str) -> String {
    let (mut done, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once(from) {
        let begins = !before.ends_with(is_of_word) && !before.ends_with("image ");
        let ends = from.ends_with(' ') || !after.starts_with(is_of_word);
        done.push_str(before);
        done.push_str(if begins && ends { to } else { from });
        rest = after;
    }
    done + rest
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || matches!(letter, '-' | '_' | '/' | '.')
}

/// The parts of `text`, and whether each is quoted, as Rust quotes.
fn quoted(text: &str) -> Vec<(&str, bool)> {
    let (mut parts, mut start, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '"' if !is_escaped => {
                let end = if is_quoted { at + 1 } else { at };
                parts.extend(text.get(start..end).map(|part| (part, is_quoted)));
                (start, is_quoted) = (end, !is_quoted);
            }
            '\\' => is_escaped = is_quoted && !is_escaped,
            _ => is_escaped = false,
        }
    }
    // A quotation that does not end is none.
    parts.extend(text.get(start..).map(|part| (part, false)));
    parts
}

/// Credentials are not a secret of Kubernetes here, but what tools have logged in to.
fn logged_in(text: &str) -> String {
    let (start, end) = ("give a kubernetes.io/dockerconfigjson secret for ", " as nodePublishSecretRef");
    let Some((before, rest)) = text.split_once(start) else { return text.to_owned() };
    let Some((host, after)) = rest.split_once(end) else { return text.to_owned() };
    format!("{before}log in with `docker login {host}`, `podman login {host}` or `oras login {host}`{after}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::failure::Failure;
    use crate::mount::target::Policy;
    use crate::pull::error::Error as PullError;
    use crate::registry::error::Error as RegistryError;
    use crate::volume::attributes::Attributes;
    use crate::volume::error::Error;

    fn said(error: impl Into<Error>) -> String {
        let error: Error = error.into();
        on_the_command_line(&Failure::from(error).message)
    }

    #[test]
    fn attributes_are_flags() {
        for (key, value, expected) in [
            ("pullPolicy", "x", r#"--pull-policy is "x"; allowed are Always, IfNotPresent, Never"#),
            ("platform", "x", "--platform: not a platform"),
            ("stripComponents", "x", r#"--strip-components is "x""#),
            ("include", "[", "--include or --exclude: "),
            ("path", "../x", "--path: \"../x\" is no path inside the volume"),
            ("readable", "x", r#"--readable is "x""#),
            ("variant", "x", r#"--variant is "x""#),
            ("reference", "X", "not a reference: "),
        ] {
            let mut given = BTreeMap::from([("reference".to_owned(), "r.example/x".to_owned())]);
            given.insert(key.to_owned(), value.to_owned());
            let error = Attributes::parse(&given).expect_err(value);
            let text = said(error);
            assert!(text.starts_with(expected), "{text}");
        }
        let unpacked = [("reference", "r.example/x"), ("layout", "blobs"), ("unpack", "always")];
        let given = unpacked.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let text = said(Attributes::parse(&given).expect_err("both"));
        assert_eq!(
            text,
            r#"--unpack is "always", and --layout blobs unpacks nothing; leave out one of them"#
        );
    }

    #[test]
    fn regression_what_is_no_such_phrase_stays_as_it_is() {
        for text in [
            "/x is no OCI image layout: it has no file oci-layout",
            "/x is no OCI image layout: its file oci-layout cannot be read",
            r#"target path "/mnt/this pod/layout: blobs" is refused: it has a '..'"#,
            "registry.example/this pod: layout: blobsy, unpack: x",
            "r.example/x does not exist in r.example; this pod is a word of the registry's",
            r#"file "volume attribute path; unpublish it first" is no name"#,
            r#"--include pattern "exclude pattern \"x\"" matches nothing"#,
            "it is tried again by somebody else",
            "relayout: auto and my-layout: auto",
        ] {
            assert_eq!(on_the_command_line(text), text);
        }
        assert_eq!(
            on_the_command_line(
                r#""a" is mounted only with layout: blobs (its blobs by digest) or "layout: blobs""#
            ),
            r#""a" is mounted only with --layout blobs (its blobs by digest) or "layout: blobs""#
        );
    }

    #[test]
    fn credentials_are_what_tools_logged_in_to() {
        let needed = RegistryError::CredentialsNeeded {
            host: "r.example".into(),
            repository: "x".into(),
            detail: " (denied)".into(),
        };
        let text = said(Error::Pull(std::sync::Arc::new(PullError::from(needed))));
        assert_eq!(
            text,
            "r.example asks for credentials to read x and none match; log in with `docker login r.example`, `podman login r.example` \
             or `oras login r.example` (denied)"
        );
        let refused = RegistryError::CredentialsRefused {
            host: "r.example".into(),
            repository: "x".into(),
            user: "u".into(),
            detail: String::new(),
        };
        let text = said(Error::Pull(std::sync::Arc::new(PullError::from(refused))));
        assert!(text.ends_with("; log in again, with `docker login` for example"), "{text}");
    }

    #[test]
    fn nobody_unpublishes_and_nothing_is_tried_again() {
        let occupied =
            Error::Occupied { path: "/mnt".into(), there: "volume \"x\" of r/x with other arguments".into() };
        assert!(said(occupied).ends_with("mounted with other flags; unmount it first"));
        let busy = crate::mount::error::Error::Busy {
            path: "/mnt".into(),
            source: std::io::Error::from_raw_os_error(libc::EBUSY),
        };
        let text = said(busy);
        assert!(text == "/mnt is in use", "{text}");
        let used =
            "/mnt is in use: Device or resource busy (os error 16); it is tried again; used by process 1 (x)";
        assert_eq!(on_the_command_line(used), "/mnt is in use; used by process 1 (x)");
        let root = Policy::anywhere().check("/").expect_err("refused");
        assert_eq!(said(root), "target path \"/\" is refused: it is the root directory");
        let unreachable = RegistryError::Unreachable { host: "r.example".into(), reason: "no route".into() };
        let text = said(Error::Pull(std::sync::Arc::new(PullError::from(unreachable))));
        assert_eq!(
            text,
            "cannot reach r.example: no route; check the registry's name, and network and DNS of this machine"
        );
        let absent = PullError::NotPresent { reference: "r/x:v1".into() };
        let text = said(Error::Pull(std::sync::Arc::new(absent)));
        assert!(text.contains("--pull-policy is Never"), "{text}");
        let other = PullError::OtherPlatform {
            reference: "r/x:v1".into(),
            found: "linux/amd64".into(),
            wanted: "windows/amd64".into(),
        };
        assert!(said(Error::Pull(std::sync::Arc::new(other))).contains("leave out --platform"));
    }
}
