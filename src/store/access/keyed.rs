//! Names of files that reveal nothing: a keyed hash of registry, repository, credential and what it is about.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};

use crate::oci::digest::hex;
use crate::oci::repository::Repository;
use crate::store::error::{Error, io};

/// Who asks for what, as far as the store needs to tell askers apart.
#[derive(Debug, Clone, Copy)]
pub struct AccessKey<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// The credential's parts, or empty for anonymous.
    pub credential: &'a [&'a str],
}

/// A key of this node, with which names are made. A name reveals no secret, and an entry made for one credential is not found
/// with another.
#[derive(Clone)]
pub struct NodeKey([u8; 64]);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("NodeKey")
    }
}

impl NodeKey {
    /// The key of this node, made when the store is.
    ///
    /// # Errors
    /// [`Error::Unusable`] when there is one that cannot be read; [`Error::NoSpace`], [`Error::Io`].
    pub(in crate::store) fn of(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("key");
        match fs::read(&path) {
            // One that was cut short by a power cut is of no use.
            Ok(bytes) => {
                if let Ok(key) = bytes.try_into() {
                    return Ok(Self(key));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display();
                let reason =
                    format!("{path} cannot be read ({error}); remove it, and rights are asked for again");
                return Err(Error::Unusable { root: directory.to_owned(), reason });
            }
        }
        let key: [u8; 64] = rand::random();
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        let mut file = file.map_err(io("create", &path))?;
        std::io::Write::write_all(&mut file, &key).map_err(io("write", &path))?;
        Ok(Self(key))
    }

    /// The name of what is known of `what` for `who`.
    pub(in crate::store) fn name(&self, who: AccessKey<'_>, what: &str) -> String {
        let mut mac = Hmac::<sha2::Sha256>::new((&self.0).into());
        let parts = [who.repository.host.as_str(), who.repository.name.as_str(), what];
        for part in parts.into_iter().chain(who.credential.iter().copied()) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part.as_bytes());
        }
        format!("{}.json", hex(&mac.finalize().into_bytes()))
    }
}
