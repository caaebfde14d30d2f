//! Makes volumes of claims: asks the registry what the reference is, and says what the nodes mount. Nothing is kept: the
//! PersistentVolume is the only record.

use std::collections::BTreeMap;

use crate::failure::{Failure, Kind};
use crate::layout::error::Error as LayoutError;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, parse};
use crate::provision::claim_name;
use crate::provision::class::Class;
use crate::provision::error::Error;
use crate::pull::remote::{self, AtRegistry};
use crate::registry::client::{Fetched, Registry};
use crate::registry::credentials::keyring::Keyring;
use crate::registry::credentials::secret::Secret;
use crate::registry::source::Asker;
use crate::tenant::Tenant;
use crate::volume;

/// Makes volumes.
#[derive(Clone)]
pub struct Provisioner {
    registry: Registry,
}

/// What is asked for.
pub struct Wanted {
    /// The class's parameters, and what the provisioner tells of the claim.
    pub parameters: BTreeMap<String, String>,
    /// The class's provisioner secret.
    pub secrets: BTreeMap<String, Secret>,
    /// Bytes that the claim may have.
    pub limit: Option<u64>,
}

/// A volume.
#[derive(Debug)]
pub struct Provisioned {
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// What was asked for, with the claim's name in it.
    pub reference: String,
    /// What that is, where somebody was asked or it is named: of several platforms the index.
    pub digest: Option<Digest>,
}

impl Provisioner {
    /// Asks through `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// When the class or the claim cannot be used, or the registry does not have what they name.
    pub async fn provision(&self, wanted: Wanted) -> Result<Provisioned, Error> {
        let tenant = Tenant::of_namespace(claim_name::namespace(&wanted.parameters));
        let class = Class::parse(wanted.parameters)?;
        let keyring = Keyring::from_secrets(&wanted.secrets)?;
        let reference = class.attributes.reference.clone();
        let mut digest = reference.digest().cloned();
        // What lies on the nodes is theirs to know.
        if class.check && !reference.is_layout() {
            let (asker, fetched) = remote::find(&self.registry, &reference, &keyring, &tenant).await?;
            digest = Some(fetched.digest.clone());
            let size = self.look(&class, &asker, fetched).await?;
            if let (Some(size), Some(limit)) = (size, wanted.limit)
                && size > limit
            {
                return Err(Error::TooLarge { reference: reference.to_string(), size, limit });
            }
        }
        let mut attributes = class.given;
        if let Some(digest) = digest.as_ref().filter(|_| class.pin && reference.digest().is_none()) {
            attributes.insert("reference".to_owned(), format!("{reference}@{digest}"));
        }
        Ok(Provisioned { attributes, reference: reference.to_string(), digest })
    }

    /// Sees that what `fetched` is can be mounted, and returns the bytes of its content where they are known. Which platform a node has
    /// is not known here: an image that this machine could not run may be one for others.
    async fn look(&self, class: &Class, asker: &Asker, fetched: Fetched) -> Result<Option<u64>, Failure> {
        let attributes = &class.attributes;
        let digest = fetched.digest.clone();
        let is_for_others = !attributes.platform_given
            && match parse(&fetched.bytes, fetched.content_type.as_deref()) {
                Ok(Document::Index(index)) => index.manifests.iter().any(|child| child.platform.is_some()),
                _ => false,
            };
        let mut documents = AtRegistry::new(&self.registry, asker, fetched);
        let found = match attributes.choice.follow(&attributes.reference, &digest, &mut documents).await {
            Ok(found) => found,
            Err(failure) if is_for_others && failure.kind == Kind::FailedPrecondition => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let (planned, _) = remote::plan(&self.registry, asker, &found, &attributes.options).await?;
        let plan = planned.map_err(|error: LayoutError| Failure::new(error.kind(), &error))?;
        Ok(Some(volume::list::needed(None, &plan).0))
    }
}
