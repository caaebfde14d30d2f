//! Which volumes are warmed, and when: from their publish, or from the start of the plugin, to their unpublish.

use std::path::Path;
use std::sync::Arc;

use crate::host::blocking::{self, Lane};
use crate::store::usage::volumes::{VolumeRecord, WarmRecord};
use crate::tenant::Tenant;
use crate::volume::attributes::Warm;
use crate::warm::order::Content;
use crate::warm::volume::Wanted;
use crate::warm::warmer::Warmer;

/// What is recorded of a volume that wants `warm` and shows `directory` of the store at `root`, of an artifact of `family`; `None` when it
/// is never warmed.
pub(in crate::volume) fn record(
    warm: Warm,
    root: &Path,
    directory: &Path,
    family: &str,
) -> Option<WarmRecord> {
    let pinned = match warm {
        Warm::Auto => false,
        Warm::Never => return None,
        Warm::Pinned => true,
    };
    let directory = directory.strip_prefix(root).ok()?.to_owned();
    Some(WarmRecord { directory, model: Content::of_family(family) == Content::Model, pinned })
}

/// Warms a volume that is mounted from now on, if its record says so.
///
/// *Caller:* holds the target's turn, so that an unpublish comes before it or after it; and runs in the async runtime or on one of its
/// threads.
pub(in crate::volume) fn begin(warmer: &Arc<Warmer>, root: &Path, tenant: &Tenant, record: &VolumeRecord) {
    let Some(warm) = record.warm.as_ref().filter(|_| warmer.is_on()) else { return };
    let pinned = warm.pinned && warmer.may_pin();
    if warm.pinned && !pinned {
        tracing::warn!(
            target_path = %record.target.display(),
            pod = record.pod,
            "warm: pinned is taken as auto: the operator allows no memory for it (warm.pinBudget)"
        );
    }
    let wanted = Wanted {
        directory: root.join(&warm.directory),
        content: if warm.model || pinned { Content::Model } else { Content::Anything },
        pinned,
    };
    if warmer.add(tenant, &record.target, wanted) {
        run(warmer);
    }
}

/// The volume at `target` is gone. *Caller:* as of [`begin`].
pub(in crate::volume) fn end(warmer: &Arc<Warmer>, target: &Path) {
    let removed = warmer.remove(target);
    if removed.needs_thread {
        run(warmer);
    }
    if removed.had_locks {
        tokio::spawn(blocking::run(Lane::Work, move || drop(removed)));
    }
}

/// Starts the thread that warms.
pub(in crate::volume) fn run(warmer: &Arc<Warmer>) {
    let warmer = Arc::clone(warmer);
    tokio::spawn(async move {
        let working = Arc::clone(&warmer);
        if let Err(error) = blocking::on_own_thread("warm", move || working.work()).await {
            tracing::warn!(%error, "cannot warm: no thread");
            warmer.has_no_thread();
        }
    });
}
