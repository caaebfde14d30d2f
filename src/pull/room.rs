//! Room for what a pull is going to bring, before anything is fetched.

use std::sync::Arc;

use crate::host::blocking::{self, Lane};
use crate::pull::error::Error;
use crate::pull::quotas::{Admission, Quotas};
use crate::registry::source::Asker;
use crate::store::error::Error as StoreError;
use crate::store::key::Name;
use crate::store::open::Store;
use crate::store::space::amount::Amount;
use crate::store::space::room::{Coming, Promise};
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;
use crate::transfer::needed::Promise as Content;
use crate::transfer::needed::{Form, Needed, origin};

/// Finds room.
#[derive(Clone)]
pub struct Rooms {
    store: Arc<Store>,
    quotas: Quotas,
    /// Held by who collects what is unused.
    making_room: Arc<tokio::sync::Mutex<()>>,
}

/// Room for a pull, as long as it is kept.
pub struct Reservation {
    _promise: Option<Promise>,
    _admission: Admission,
}

/// What has to be written of contents.
type Contents = Vec<Coming>;

/// Blobs of one pull that room is promised for.
const PROMISES: usize = 4096;

impl Rooms {
    /// Finds room in `store`, for each namespace as much as `quotas` say.
    pub fn new(store: Arc<Store>, quotas: Quotas) -> Self {
        Self { store, quotas, making_room: Arc::default() }
    }

    /// Makes sure that there is room for what is missing of `all`.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and [`StoreError::Quota`] when it is clear that it does not fit.
    pub async fn reserve(
        &self,
        all: Vec<Needed>,
        asker: &Asker,
    ) -> Result<(Vec<Needed>, Reservation), Error> {
        let (store, asking) = (Arc::clone(&self.store), asker.clone());
        let look = move || missing(&store, &all, &asking).map(|missing| (all, missing));
        let (all, missing) = blocking::run::<Result<_, StoreError>>(Lane::Work, look).await?;
        let bytes = missing.iter().fold(0_u64, |sum, coming| sum.saturating_add(coming.missing));
        let admission = self.quotas.admit(&asker.tenant, bytes).await?;
        let promise = self.make_room(&asker.tenant, missing).await?;
        Ok((all, Reservation { _promise: Some(promise), _admission: admission }))
    }

    /// The same for a pull that brings nothing and makes a tree.
    ///
    /// # Errors
    /// [`StoreError::Quota`].
    pub async fn admit(&self, asker: &Asker) -> Result<Reservation, Error> {
        let admission = self.quotas.admit(&asker.tenant, 0).await?;
        Ok(Reservation { _promise: None, _admission: admission })
    }

    async fn make_room(&self, tenant: &Tenant, missing: Contents) -> Result<Promise, Error> {
        let (promised, missing) = self.promise(tenant, missing).await?;
        if let Ok(promise) = promised {
            return Ok(promise);
        }
        // One after the other: what the first makes room for may be enough.
        let _one = self.making_room.lock().await;
        let (promised, missing) = self.promise(tenant, missing).await?;
        if let Ok(promise) = promised {
            return Ok(promise);
        }
        let (room, of) = (Arc::clone(&self.store.disk.room), tenant.clone());
        let collect = move || {
            room.make_room_for(&of, &missing);
            missing
        };
        let missing = blocking::on_own_thread("collect", collect).await.map_err(TransferError::Thread)?;
        match self.promise(tenant, missing).await? {
            (Ok(promise), _) => Ok(promise),
            (Err(short), missing) => Err(self.store.disk.room.full_for(&missing, short).into()),
        }
    }

    async fn promise(
        &self,
        tenant: &Tenant,
        contents: Contents,
    ) -> Result<(Result<Promise, Amount>, Contents), StoreError> {
        let (room, tenant) = (Arc::clone(&self.store.disk.room), tenant.clone());
        let promise = move || room.promise(&tenant, &contents).map(|promised| (promised, contents));
        blocking::run(Lane::Store, promise).await
    }
}

/// What has to be written of each blob that is missing, the largest first. What is here and not for this asker counts as missing:
/// that there is room for it would say that it is here.
fn missing(store: &Store, all: &[Needed], asker: &Asker) -> Result<Contents, StoreError> {
    let from = origin(&asker.source);
    let mut missing = Vec::new();
    // Of many thousand, those that are not the largest are found to fit or not when they come.
    for needed in all.iter().take(PROMISES) {
        let found = needed.find(store)?;
        let usable = found.filter(|found| found.is_rightful(&asker.source));
        if usable.is_some_and(|found| !matches!(needed.promise(&found), Content::Unknown)) {
            continue;
        }
        let bytes = match needed.form {
            Form::File => store.ingests.missing_of(&needed.blob, &from)?,
            // What is in it takes more; that is looked at while it is unpacked.
            Form::Layer { .. } => needed.blob.size,
            Form::Nothing => continue,
        };
        let (name, size) = (Name::content(&needed.blob.digest), needed.blob.size);
        missing.push(Coming { name, size, missing: bytes });
    }
    Ok(missing)
}
