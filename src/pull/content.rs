//! Needed content: it is here, and the asker may read it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::TryStreamExt as _;

use crate::host::blocking::{self, Lane};
use crate::oci::descriptor::Descriptor;
use crate::pull::error::Error;
use crate::pull::metrics::{Content, Metrics};
use crate::pull::progress::Progress;
use crate::pull::rights::Rights;
use crate::registry;
use crate::registry::client::Registry;
use crate::registry::source::Asker;
use crate::store::error::Error as StoreError;
use crate::store::open::Store;
use crate::transfer::error::Error as TransferError;
use crate::transfer::needed::{Form, Needed, Promise, Stored, origin};
use crate::transfer::run::Transfers;

/// Brings content, for askers that have a right to it.
#[derive(Clone)]
pub struct Contents {
    store: Arc<Store>,
    registry: Registry,
    rights: Rights,
    transfers: Arc<Transfers>,
    /// Layers of blobs above so many bytes are files first.
    spool_above: Option<u64>,
    metrics: Metrics,
}

/// Blobs of one pull that are looked after at a time; transfers are bounded apart.
const BLOBS_AT_A_TIME: usize = 16;
/// Transfers of one blob that one asker waits for: each but the last ended without its own source being tried.
const ROUNDS: usize = 4;

impl Contents {
    /// Brings content by `transfers`; layers of blobs above `spool_above` bytes as files first.
    pub fn new(
        store: Arc<Store>,
        registry: Registry,
        rights: Rights,
        transfers: Arc<Transfers>,
        spool_above: Option<u64>,
        metrics: Metrics,
    ) -> Self {
        Self { store, registry, rights, transfers, spool_above, metrics }
    }

    /// Brings all that is needed, and makes sure that `asker` may read each.
    ///
    /// # Errors
    /// Those of transfers.
    pub async fn ensure_all(
        &self,
        all: Vec<Needed>,
        asker: &Asker,
        progress: &Progress,
    ) -> Result<(), Error> {
        futures_util::stream::iter(all.iter().map(Ok))
            .try_for_each_concurrent(BLOBS_AT_A_TIME, |needed| self.ensure(needed, asker, progress))
            .await
    }

    /// Brings a blob into the store, in the form that is needed, and makes sure that `asker` may read it.
    ///
    /// # Errors
    /// Those of transfers.
    pub async fn ensure(&self, needed: &Needed, asker: &Asker, progress: &Progress) -> Result<(), Error> {
        let _working = progress.working_on(&needed.name);
        let is_spooled = matches!(needed.form, Form::Layer { .. })
            && self.spool_above.is_some_and(|limit| needed.blob.size > limit);
        if is_spooled && self.find(needed).await?.is_none() {
            // All that has come of a file is still there after a restart. It is unpacked from there, and then nobody's.
            self.bring(&Needed::file(&needed.blob), asker, progress).await?;
        }
        let reused = self.bring(needed, asker, progress).await?;
        progress.blob_done(reused);
        let content = if reused > 0 { Content::Present } else { Content::Fetched };
        self.metrics.has_come(content, needed.blob.size);
        Ok(())
    }

    /// The same. Returns how many bytes were here before.
    async fn bring(&self, needed: &Needed, asker: &Asker, progress: &Progress) -> Result<u64, Error> {
        let blob = &needed.blob;
        let mut own_error = None;
        let mut fetched_here = false;
        for round in 0..=ROUNDS {
            if let Some(found) = self.find(needed).await? {
                let promise = needed.promise(&found);
                if !matches!(promise, Promise::Unknown) {
                    if !found.is_rightful(&asker.source) {
                        self.show_right(needed, asker, &found, progress).await?;
                    }
                    if found.size() != blob.size {
                        let got = "content of another size than the manifest says".to_owned();
                        let (host, wanted) = (asker.source.repository.host.clone(), blob.digest.clone());
                        return Err(registry::error::Error::WrongContent { host, wanted, got }.into());
                    }
                    if let Promise::Broken(error) = promise {
                        return Err(error.into());
                    }
                    return Ok(if fetched_here { 0 } else { blob.size });
                }
            }
            if let Some(error) = own_error {
                return Err(TransferError::Shared(error).into());
            }
            if round == ROUNDS {
                break;
            }
            if let Some(error) = self.transfers.verdicts.refusal(needed, &asker.source) {
                return Err(TransferError::Shared(error).into());
            }
            let mut waiter = self.transfers.join(needed, asker, true);
            progress.follow(&waiter.state().counter);
            fetched_here = true;
            match waiter.wait().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    // Another's failure is no answer for this one: it may name their registry, and their right.
                    own_error = waiter.state().error(&asker.source);
                    // The next transfer counts what is here itself.
                    waiter.state().counter.here.store(0, Ordering::Relaxed);
                    if own_error.is_none() && error.is_everybodys() {
                        // Names in a layer are for those who may read it.
                        if error.tells_content() && !self.may_read_file(blob, asker).await? {
                            self.read_once(blob, asker, progress).await?;
                        }
                        return Err(TransferError::Shared(error).into());
                    }
                }
                None => own_error = Some(Arc::new(TransferError::Fault)),
            }
        }
        Err(TransferError::Crowded { digest: blob.digest.clone() }.into())
    }

    /// Checks that every blob is here and `asker` may have it, without asking anybody.
    ///
    /// # Errors
    /// Those of the store, and of unpacking what is here as a file.
    pub async fn are_here(&self, all: &[Needed], asker: &Asker) -> Result<bool, Error> {
        for needed in all {
            if !self.is_here(needed, asker).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_here(&self, needed: &Needed, asker: &Asker) -> Result<bool, Error> {
        if let Some(found) = self.find(needed).await?.filter(|found| found.is_rightful(&asker.source)) {
            match needed.promise(&found) {
                Promise::Kept => return Ok(true),
                Promise::Broken(error) => return Err(error.into()),
                Promise::Unknown => {}
            }
        }
        // What is here as a file can be unpacked without asking.
        if needed.form == Form::File || !self.may_read_file(&needed.blob, asker).await? {
            return Ok(false);
        }
        match self.transfers.join(needed, asker, false).wait().await {
            Some(Ok(stored)) => Ok(stored.is_rightful(&asker.source)),
            Some(Err(error)) if error.is_everybodys() => Err(TransferError::Shared(error).into()),
            _ => Ok(false),
        }
    }

    async fn find(&self, needed: &Needed) -> Result<Option<Stored>, StoreError> {
        let (store, needed) = (Arc::clone(&self.store), needed.clone());
        // The first look at what may not have survived a crash reads all of it.
        blocking::run(Lane::Work, move || needed.find(&store)).await
    }

    /// Whether `blob` is here as a file, and for `asker`.
    async fn may_read_file(&self, blob: &Descriptor, asker: &Asker) -> Result<bool, Error> {
        let found = self.find(&Needed::file(blob)).await?;
        Ok(found.is_some_and(|found| found.is_rightful(&asker.source)))
    }

    /// Shows that `asker` may read a blob that came from elsewhere.
    async fn show_right(
        &self,
        needed: &Needed,
        asker: &Asker,
        found: &Stored,
        progress: &Progress,
    ) -> Result<(), Error> {
        let repository = &asker.source.repository;
        let is_known_there = found.origins().iter().any(|known| known.repository.host == repository.host);
        let may_say_so = is_known_there && self.rights.believes_word_of(asker).await?;
        if !may_say_so || !self.registry.confirms_blob(asker, &needed.blob).await? {
            self.read_once(&needed.blob, asker, progress).await?;
        }
        let (store, needed, from) = (Arc::clone(&self.store), needed.clone(), origin(&asker.source));
        Ok(blocking::run(Lane::Store, move || needed.add_origin(&store, from)).await?)
    }

    /// Reads all of `blob` from the asker's own source, and compares it with its digest, without keeping it. A transfer like any
    /// other: it has its turn, is tried again where it broke off, and is one for all who ask the same.
    async fn read_once(&self, blob: &Descriptor, asker: &Asker, progress: &Progress) -> Result<(), Error> {
        let needed = Needed::new(blob, Form::Nothing);
        let mut waiter = self.transfers.join(&needed, asker, true);
        progress.follow(&waiter.state().counter);
        match waiter.wait().await {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(TransferError::Shared(error).into()),
            None => Err(TransferError::Fault.into()),
        }
    }
}
