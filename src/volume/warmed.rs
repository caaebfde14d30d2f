//! Which volumes are warmed, and when: from their publish, or from the start of the plugin, to their unpublish.

use std::path::Path;

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

/// Warms a volume that is mounted from now on, if its record says so. Returns whether `Volumes::run_warmer` has to be called.
///
/// *Caller:* holds the target's turn, so that an unpublish comes before it or after it.
#[must_use]
pub(in crate::volume) fn begin(warmer: &Warmer, root: &Path, tenant: &Tenant, record: &VolumeRecord) -> bool {
    let Some(warm) = &record.warm else { return false };
    if warm.pinned && !warmer.may_pin() {
        tracing::warn!(
            target_path = %record.target.display(),
            pod = record.pod,
            "warm: pinned is taken as auto: the operator allows no memory for it (warm.pinBudget)"
        );
    }
    let wanted = Wanted {
        directory: root.join(&warm.directory),
        content: if warm.model || warm.pinned { Content::Model } else { Content::Anything },
        pinned: warm.pinned,
    };
    warmer.add(tenant, &record.target, wanted)
}
