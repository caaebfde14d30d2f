//! Messages in the words of who reads them: errors are written for the events of pods, and on a command line attributes are flags,
//! and nobody unpublishes.

/// What errors say, and what they say on a command line.
const WORDS: [(&str, &str); 33] = [
    ("volume attribute reference: ", ""),
    ("volume attribute include or exclude: ", "--include or --exclude: "),
    ("volume attribute pullPolicy", "--pull-policy"),
    ("volume attribute platform", "--platform"),
    ("volume attribute layout", "--layout"),
    ("volume attribute unpack", "--unpack"),
    ("volume attribute stripComponents", "--strip-components"),
    ("volume attribute variant", "--variant"),
    ("volume attribute readable", "--readable"),
    ("volume attribute path", "--path"),
    ("volume attribute exec", "--exec"),
    ("pullPolicy is Never", "--pull-policy is Never"),
    ("include pattern ", "--include pattern "),
    ("exclude pattern ", "--exclude pattern "),
    ("stripComponents is for archives", "--strip-components is for archives"),
    ("layout: ", "--layout "),
    ("unpack: ", "--unpack "),
    ("the attribute platform, artifactType or variant", "--platform, --artifact-type or --variant"),
    ("the attribute artifactType or variant", "--artifact-type or --variant"),
    ("the attribute platform", "--platform"),
    ("leave out artifactType and variant", "leave out --artifact-type and --variant"),
    ("leave out platform", "leave out --platform"),
    (" (attribute path)", " (--path)"),
    ("; unpublish it first", "; unmount it first"),
    ("with other arguments", "mounted with other flags"),
    (" in `reference`", ""),
    ("network and DNS of the node", "network and DNS of this machine"),
    ("check user name and password in the volume's secret", "log in again, with `docker login` for example"),
    ("this pod", "you"),
    ("it is tried again later", "try again later"),
    ("; it is tried again", ""),
    (" is in use: Device or resource busy (os error 16)", " is in use"),
    (": it is the directory of targets itself", ": it is the root directory"),
];

/// `message` for who has a command line.
pub fn on_the_command_line(message: &str) -> String {
    let text = WORDS.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to));
    logged_in(&text)
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
