//! Makes volumes of claims: asks the registry what the reference is, and says what the nodes mount. Nothing is kept: the
//! PersistentVolume is the only record.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::failure::Failure;
use crate::host::fair_queue::FairQueue;
use crate::layout::error::Error as LayoutError;
use crate::oci::digest::Digest;
use crate::provision::claim_name;
use crate::provision::class::Class;
use crate::provision::error::Error;
use crate::pull::choose::{Choice, Documents as _};
use crate::pull::remote::{self, AtRegistry};
use crate::registry::client::{Fetched, Registry};
use crate::registry::credentials::keyring::Keyring;
use crate::registry::credentials::secret::Secret;
use crate::registry::source::Asker;
use crate::tenant::Tenant;
use crate::volume::attributes::Attributes;
use crate::volume::list::needed;
use crate::volume::permits::Permits;

/// Claims that are worked on at a time. A namespace leaves places to others, and a registry that does not answer holds them for as long
/// as a call may take. Each has up to 56 MiB of memory: an index, a manifest, a config, the largest plan. The secrets of all that wait are beside it,
/// a megabyte of each call.
const AT_A_TIME: u64 = 8;
/// How long a claim waits for its place. Then it is asked for again, later and later.
const WAIT: Duration = Duration::from_secs(5);

/// Makes volumes.
#[derive(Clone)]
pub struct Provisioner {
    registry: Registry,
    permits: Permits,
    anonymous: bool,
    places: FairQueue,
}

/// What is asked for.
pub struct Wanted {
    /// The class's parameters, and what the provisioner tells of the claim.
    pub parameters: BTreeMap<String, String>,
    /// The class's provisioner secret.
    pub secrets: BTreeMap<String, Secret>,
    /// Bytes that the volume may have. external-provisioner says nothing of a claim's limit; the interface has it.
    pub limit: Option<u64>,
}

/// The same, checked.
pub struct Checked {
    class: Class,
    keyring: Keyring,
    tenant: Tenant,
    limit: Option<u64>,
}

/// A volume.
#[derive(Debug)]
pub struct Provisioned {
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// What its reference is, where somebody was asked or it is named: of several platforms the index.
    pub digest: Option<Digest>,
}

impl Wanted {
    /// Reads the class and the secret. *Caller:* secrets of a megabyte, and many patterns, are work.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn check(self) -> Result<Checked, Error> {
        let tenant = Tenant::of_namespace(claim_name::namespace(&self.parameters));
        let class = Class::parse(self.parameters)?;
        let keyring = Keyring::from_secrets(&self.secrets)?;
        Ok(Checked { class, keyring, tenant, limit: self.limit })
    }
}

impl Checked {
    /// What the claim is to get, with its name in the reference.
    pub fn attributes(&self) -> &Attributes {
        &self.class.attributes
    }

    /// Bytes that the volume may have.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }
}

impl Provisioner {
    /// Asks through `registry`, for claims of namespaces whose pods may use what they get; without credentials only if `anonymous`.
    pub fn new(registry: Registry, permits: Permits, anonymous: bool) -> Self {
        Self { registry, permits, anonymous, places: FairQueue::new(AT_A_TIME) }
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// When the claim's namespace may not have it, or the registry does not have what can be mounted.
    pub async fn provision(&self, wanted: Checked) -> Result<Provisioned, Error> {
        let Checked { class, keyring, tenant, limit } = wanted;
        let reference = class.attributes.reference.clone();
        self.permits.check(&tenant, &reference).map_err(|error| Failure::new(error.kind(), &error))?;
        let mut digest = reference.digest().cloned();
        // What lies on the nodes is theirs to know.
        if class.check && !reference.is_layout() {
            let place = self.places.acquire(&tenant, reference.host(), 1);
            let Ok(_place) = tokio::time::timeout(WAIT, place).await else {
                return Err(Error::Crowded { tenant: tenant.to_string() });
            };
            let asked = remote::find(&self.registry, &reference, &keyring, &tenant, self.anonymous);
            let (asker, fetched) = asked.await?;
            digest = Some(fetched.digest.clone());
            let size = self.look(&class, &asker, fetched).await?;
            if let Some(limit) = limit.filter(|limit| size > *limit) {
                return Err(Error::TooLarge { reference: reference.to_string(), size, limit });
            }
        }
        let mut attributes = class.given;
        if let Some(digest) = digest.as_ref().filter(|_| class.pin && reference.digest().is_none()) {
            attributes.insert("reference".to_owned(), format!("{reference}@{digest}"));
        }
        Ok(Provisioned { attributes, digest })
    }

    /// Sees that what `fetched` is can be mounted, and returns the bytes of its content. Which platform a node has is not known here: of
    /// an image that is not for this machine that is looked at which is for another.
    async fn look(&self, class: &Class, asker: &Asker, fetched: Fetched) -> Result<u64, Failure> {
        let attributes = &class.attributes;
        let digest = fetched.digest.clone();
        let mut documents = AtRegistry::new(&self.registry, asker, fetched);
        let mut found = attributes.choice.follow(&attributes.reference, &digest, &mut documents).await;
        // A failure that may pass is none of the platform's.
        if let Err(error) = &found
            && AtRegistry::is_final(error)
            && !attributes.platform_given
        {
            for platform in documents.platforms().to_owned() {
                let choice = Choice { platform, ..attributes.choice.clone() };
                let other = choice.follow(&attributes.reference, &digest, &mut documents).await;
                if other.is_ok() {
                    found = other;
                    break;
                }
            }
        }
        let planned = remote::plan(&self.registry, asker, found?, &attributes.options).await?;
        let plan = planned.plan.map_err(|error: LayoutError| Failure::new(error.kind(), &error))?;
        Ok(needed(None, &plan).0)
    }
}
