//! Targets: where a volume may be mounted, and how to get there without being led astray.
//!
//! A target path comes with a request. kubelet's have one shape; anything else is refused (CVE-2020-8568). The
//! way from the trusted base to the target's parent is opened without following symlinks, and everything after
//! happens by descriptor, so nothing that is swapped later changes where the mount goes (CVE-2021-25741).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::mount::error::{Error, kernel};

/// Which paths are targets.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `<kubelet-dir>/pods`: below it only `<uid>/volumes/kubernetes.io~csi/<name>/mount`.
    pub pods: Option<PathBuf>,
    /// Directories below which any path is a target: `--target-root`.
    pub roots: Vec<PathBuf>,
}

/// A path that the policy allows. Nothing of it need exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The trusted directory, without symlinks.
    base: PathBuf,
    /// From there to the target's parent; may be empty.
    parent: PathBuf,
    name: PathBuf,
    /// As the mount table shows it.
    path: PathBuf,
}

impl Policy {
    /// Any path at all: for a person at a command line.
    pub fn anywhere() -> Self {
        Self { pods: None, roots: vec![PathBuf::from("/")] }
    }

    /// Checks `path`.
    ///
    /// # Errors
    /// [`Error::BadTarget`] with the rule that it breaks.
    pub fn check(&self, path: &str) -> Result<Target, Error> {
        let bad = |reason: &str| Error::BadTarget {
            path: path.chars().take(300).collect(),
            reason: reason.to_owned(),
        };
        if path.len() >= 4096 || path.contains('\0') {
            return Err(bad("it is no path"));
        }
        let candidate = Path::new(path);
        if !candidate.is_absolute() {
            return Err(bad("it is not absolute"));
        }
        if path.split('/').any(|part| part == ".." || part == ".") {
            return Err(bad("it contains '.' or '..'"));
        }
        if let Some(pods) = &self.pods
            && let Ok(below) = candidate.strip_prefix(pods)
        {
            if !has_kubelets_shape(below) {
                return Err(bad("it is not <pods>/<uid>/volumes/kubernetes.io~csi/<name>/mount"));
            }
            return Target::new(pods, below).ok_or_else(|| bad("it has no parent"));
        }
        for root in &self.roots {
            if let Ok(below) = candidate.strip_prefix(root) {
                return Target::new(root, below).ok_or_else(|| bad("it is the directory of targets itself"));
            }
        }
        let allowed = self.pods.iter().chain(&self.roots).map(|base| base.display().to_string());
        Err(bad(&format!("it is not below {}", allowed.collect::<Vec<_>>().join(" or "))))
    }
}

fn has_kubelets_shape(below: &Path) -> bool {
    let parts: Vec<&OsStr> = below.components().map(Component::as_os_str).collect();
    matches!(parts.as_slice(), [_uid, volumes, plugin, _name, mount]
        if *volumes == "volumes" && *plugin == "kubernetes.io~csi" && *mount == "mount")
}

impl Target {
    fn new(base: &Path, below: &Path) -> Option<Self> {
        let name = PathBuf::from(below.file_name()?);
        let parent = below.parent()?.to_owned();
        // The base is configuration and may hold symlinks; the mount table shows where they lead.
        let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
        let path = base.join(below);
        Some(Self { base, parent, name, path })
    }

    /// The path, as the mount table shows it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The target's name in its parent.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// Opens the directory that holds the target; `None` when it does not exist.
    pub(super) fn open_parent(&self) -> Result<Option<OwnedFd>, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = match rustix::fs::openat(CWD, &self.base, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            base => base.map_err(kernel("open", &self.base))?,
        };
        if self.parent.as_os_str().is_empty() {
            return Ok(Some(base));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&base, &self.parent, flags, Mode::empty(), resolve) {
            Ok(parent) => Ok(Some(parent)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::XDEV) => {
                Err(self.bad("a directory on the way to it is a symbolic link"))
            }
            Err(Errno::NOTDIR) => Err(self.bad("something on the way to it is no directory")),
            Err(errno) => Err(kernel("open the parent of", &self.path)(errno)),
        }
    }

    pub(super) fn bad(&self, reason: &str) -> Error {
        Error::BadTarget { path: self.path.display().to_string(), reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t34_only_paths_of_kubelets_shape_are_targets() {
        let policy = Policy { pods: Some("/var/lib/kubelet/pods".into()), roots: vec!["/sanity".into()] };
        let good =
            ["/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/model/mount", "/sanity/x", "/sanity/a/b"];
        for path in good {
            assert_eq!(policy.check(path).expect(path).path(), Path::new(path));
        }
        let long = format!("/sanity/{}", "a/".repeat(3000));
        for path in [
            "",
            "/",
            "some/path",
            "/etc",
            "/sanity",
            "/sanity/",
            "/sanityx/y",
            "/sanity/../etc/x",
            "/sanity/./x",
            "/var/lib/kubelet/pods",
            "/var/lib/kubelet/pods/uid",
            "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/model",
            "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~empty-dir/model/mount",
            "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/a/b/mount",
            "/var/lib/kubelet/pods/../pods/uid/volumes/kubernetes.io~csi/model/mount",
            "/var/lib/kubelet/plugins/x",
            "/sanity/x\0y",
            &long,
        ] {
            assert!(policy.check(path).is_err(), "{path:?} was accepted");
        }
    }
}
