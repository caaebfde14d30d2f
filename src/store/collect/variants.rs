//! The trees that one tenant makes of one manifest. Each takes inodes and no download: whoever leaves out another file each time
//! could take all of them.

use crate::oci::digest::Digest;
use crate::store::collect::report::Reason;
use crate::store::collect::rules::Wanted;
use crate::store::content::trees::Tree;
use crate::store::error::Error;
use crate::store::open::Store;
use crate::tenant::Tenant;

/// Trees of one manifest that a tenant may have which are not mounted. The oldest goes first.
pub const VARIANTS: usize = 64;

/// Makes room for one more tree of `manifest` for `tenant`. *Caller:* asks when so many were made in this process; what the process
/// before has left goes with them.
///
/// # Errors
/// [`Error::Variants`] when it has too many that were in use a moment ago; [`Error::Io`].
pub fn make_room(store: &Store, manifest: &Digest, tenant: &Tenant) -> Result<(), Error> {
    let tenant = tenant.to_string();
    let is_concerned = |tree: &Tree| {
        let mut tenants = tree.usage.tenants.iter();
        tree.image.manifest == *manifest && tenants.next() == Some(&tenant) && tenants.next().is_none()
    };
    let Some(keeper) = store.keeper.get() else { return Ok(()) };
    let report = keeper.collect(&Wanted::AllBut(VARIANTS - 1), &is_concerned)?;
    let is_unmounted = |reason: &Reason| matches!(reason, Reason::UsedAgo(_) | Reason::Enough);
    let left = report.items.iter().filter(|item| !item.goes && is_unmounted(&item.reason)).count();
    if left < VARIANTS {
        return Ok(());
    }
    Err(Error::Variants { manifest: manifest.clone(), limit: VARIANTS })
}
