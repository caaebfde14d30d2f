//! What a namespace has brought in and nobody else uses, against its quota.

use std::collections::HashSet;

use crate::store::collect::content::{blob_takes, layer_takes};
use crate::store::collect::references::{Pass, names};
use crate::store::collect::report::Reason;
use crate::store::collect::rules::Wanted;
use crate::store::collect::trees::own;
use crate::store::content::trees::Tree;
use crate::store::error::Error;
use crate::store::key::Name;
use crate::store::open::Store;
use crate::store::space::amount::Amount;
use crate::store::space::quota::{Possession, Quota};
use crate::tenant::Tenant;

/// Makes sure that so much more fits in the quota of `tenant`: what it has and does not use goes first.
///
/// # Errors
/// [`Error::Quota`] when that is not enough; [`Error::Io`].
pub fn make_room(store: &Store, tenant: &Tenant, quota: &Quota, coming: Possession) -> Result<(), Error> {
    let text = tenant.to_string();
    let is_its_own = |tree: &Tree| is_only_of(tree, &text);
    let excess = || Ok::<_, Error>(quota.excess(possession(store, &text)?, coming));
    let over = excess()?;
    if over == Possession::default() {
        return Ok(());
    }
    if let Some(keeper) = store.keeper.get() {
        if !over.takes.is_nothing() {
            keeper.collect(&Wanted::Quota(&|| Ok(excess()?.takes)), &is_its_own)?;
        }
        if let (Some(limit), true) = (quota.trees, excess()?.trees > 0) {
            // Nothing goes the first time: it says how many have to stay.
            let stay = keeper.collect(&Wanted::AllBut(usize::MAX), &is_its_own)?;
            let unused = stay.items.iter().filter(|item| item.reason == Reason::Enough).count() as u64;
            let used = stay.stays.saturating_sub(unused);
            let kept = usize::try_from(limit.saturating_sub(used + coming.trees)).unwrap_or(usize::MAX);
            keeper.collect(&Wanted::AllBut(kept), &is_its_own)?;
        }
    }
    let over = excess()?;
    if over == Possession::default() {
        return Ok(());
    }
    tracing::warn!(%tenant, ?quota, ?coming, ?over, "a namespace has used up its quota");
    let what = match over {
        Possession { takes: Amount { bytes: 1.., .. }, .. } => "bytes",
        Possession { takes: Amount { inodes: 1.., .. }, .. } => "files",
        Possession { .. } => "different volumes",
    };
    Err(Error::Quota { tenant: text, what })
}

/// What `tenant` has that nobody else uses. Content that another tree needs as well is nobody's.
fn possession(store: &Store, tenant: &str) -> Result<Possession, Error> {
    let mut has = Possession::default();
    for pass in Pass::all(store)? {
        let mut others = HashSet::new();
        store.trees.each(&mut |tree| {
            if !is_only_of(&tree, tenant) {
                others.extend(names(&tree).filter(|name| pass.has(*name)));
            }
            Ok(())
        })?;
        let mut is_new = |name: Name| pass.has(name) && others.insert(name);
        store.trees.each(&mut |tree| {
            if !is_only_of(&tree, tenant) {
                return Ok(());
            }
            if pass.is_first() {
                has.trees += 1;
                has.takes = has.takes.plus(own(&tree));
            }
            for key in tree.image.layers.iter().filter(|key| is_new(Name::layer(key))) {
                has.takes = has.takes.plus(layer_takes(store, key)?);
            }
            let blobs = tree.image.blobs.iter().flatten();
            for digest in blobs.filter(|digest| is_new(Name::content(digest))) {
                has.takes = has.takes.plus(blob_takes(store, digest));
            }
            Ok(())
        })?;
    }
    Ok(has)
}

fn is_only_of(tree: &Tree, tenant: &str) -> bool {
    tree.usage.tenants.len() == 1 && tree.usage.tenants.contains(tenant)
}
