//! What a log may show of requests: no secret, and of what the cluster adds no token.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::csi::v1::{CreateVolumeRequest, NodePublishVolumeRequest};
use crate::volume::attributes::is_ignored;

impl fmt::Debug for NodePublishVolumeRequest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NodePublishVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("target_path", &self.target_path)
            .field("readonly", &self.readonly)
            .field("volume_context", &shown(&self.volume_context))
            .field("secrets", &format_args!("{} stripped", self.secrets.len()))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CreateVolumeRequest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CreateVolumeRequest")
            .field("name", &self.name)
            .field("parameters", &shown(&self.parameters))
            .field("secrets", &format_args!("{} stripped", self.secrets.len()))
            .finish_non_exhaustive()
    }
}

fn shown(map: &HashMap<String, String>) -> BTreeMap<&str, &str> {
    map.iter()
        .map(|(key, value)| (key.as_str(), if is_ignored(key) { "***" } else { value.as_str() }))
        .collect()
}
