//! The Node service. Every method checks, hands over, and translates; nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, async_trait};

use crate::csi::metrics::Metrics;
use crate::csi::v1::node_server::Node;
use crate::csi::v1::node_service_capability::{Rpc, Type, rpc};
use crate::csi::v1::volume_usage::Unit;
use crate::csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeCondition, VolumeUsage,
};
use crate::csi::{request, status};
use crate::host::blocking::{self, Lane};
use crate::volume::publish::{Publish, Published, hold_time};
use crate::volume::volumes::Volumes;

/// Publishes volumes on this node.
#[derive(Clone)]
pub struct NodeService {
    /// Does the work.
    pub volumes: Arc<Volumes>,
    /// The node's name, as the cluster knows it.
    pub node_id: String,
    /// Accept access modes for writing, and mount read-only anyway.
    pub allow_writers: bool,
    /// Counts the calls.
    pub metrics: Metrics,
}

#[async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let deadline = Instant::now() + hold_time(timeout(request.metadata()));
        let publish = async {
            let message = request.into_inner();
            tracing::debug!(request = ?message, "publish");
            let target_path = message.target_path.clone();
            // Secrets of a megabyte, and many patterns, are work.
            let allow_writers = self.allow_writers;
            let check = move || request::publish(message, allow_writers);
            let checked = blocking::run(Lane::Mounts, check).await?;
            let target =
                self.volumes.check_target(&target_path).await.map_err(|error| status::from_volume(&error))?;
            let (reference, volume_id) = (checked.attributes.reference.clone(), checked.volume_id.clone());
            let (namespace, pod) = (checked.tenant.clone(), checked.wanting.pod.clone());
            let (pod, began) = (pod.map(|pod| pod.name).unwrap_or_default(), Instant::now());
            let publish = Publish {
                tenant: checked.tenant,
                pod: checked.pod,
                volume_id: checked.volume_id,
                target,
                attributes: checked.attributes,
                arguments: checked.arguments,
                read_only: checked.read_only,
                wanting: checked.wanting,
                deadline,
            };
            let published = self.volumes.publish(publish, &mut |_| {}).await;
            match published.map_err(|error| status::from_volume(&error))? {
                Published::AlreadyThere => {
                    tracing::info!(%namespace, pod, volume_id, target_path, "already published");
                }
                Published::Mounted(pulled) => tracing::info!(
                    %namespace,
                    pod,
                    seconds = began.elapsed().as_secs_f64(),
                    volume_id,
                    target_path,
                    %reference,
                    digest = %pulled.digest,
                    bytes = pulled.tree.image.size,
                    fetched = pulled.fetched,
                    "published"
                ),
            }
            Ok(NodePublishVolumeResponse {})
        };
        self.metrics.observe("/csi.v1.Node/NodePublishVolume", publish).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let unpublish = async {
            let NodeUnpublishVolumeRequest { volume_id, target_path } = request.into_inner();
            request::volume_id(&volume_id)?;
            if target_path.is_empty() {
                return Err(request::missing("target_path"));
            }
            let target =
                self.volumes.check_target(&target_path).await.map_err(|error| status::from_volume(&error))?;
            self.volumes.unpublish(target).await.map_err(|error| status::from_volume(&error))?;
            tracing::info!(volume_id, target_path, "unpublished");
            Ok(NodeUnpublishVolumeResponse {})
        };
        self.metrics.observe("/csi.v1.Node/NodeUnpublishVolume", unpublish).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let stats = async {
            let NodeGetVolumeStatsRequest { volume_id, volume_path, .. } = request.into_inner();
            request::volume_id(&volume_id)?;
            if volume_path.is_empty() {
                return Err(request::missing("volume_path"));
            }
            let usage = self.volumes.usage(&volume_id, &volume_path).await;
            let usage = usage.map_err(|error| status::from_volume(&error))?;
            // Read-only: all of it is used, none of it is available.
            let all = |amount: u64, unit: Unit| {
                let amount = i64::try_from(amount).unwrap_or(i64::MAX);
                VolumeUsage { available: 0, total: amount, used: amount, unit: unit.into() }
            };
            let usage = vec![all(usage.bytes, Unit::Bytes), all(usage.inodes, Unit::Inodes)];
            let damage = self.volumes.damage(&volume_path).await;
            let condition = VolumeCondition {
                abnormal: damage.is_some(),
                message: damage.unwrap_or_else(|| "no damage is known".to_owned()),
            };
            Ok(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition) })
        };
        self.metrics.observe("/csi.v1.Node/NodeGetVolumeStats", stats).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| {
            let rpc = Rpc { r#type: kind.into() };
            NodeServiceCapability { r#type: Some(Type::Rpc(rpc)) }
        };
        let capabilities = [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition].map(capability).into();
        let response = async { Ok(NodeGetCapabilitiesResponse { capabilities }) };
        self.metrics.observe("/csi.v1.Node/NodeGetCapabilities", response).await
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let response = NodeGetInfoResponse { node_id: self.node_id.clone(), max_volumes_per_node: 0 };
        self.metrics.observe("/csi.v1.Node/NodeGetInfo", async { Ok(response) }).await
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        self.metrics.observe("/csi.v1.Node/NodeStageVolume", async { Err(no_capability("staging")) }).await
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        self.metrics.observe("/csi.v1.Node/NodeUnstageVolume", async { Err(no_capability("staging")) }).await
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        self.metrics.observe("/csi.v1.Node/NodeExpandVolume", async { Err(no_capability("expansion")) }).await
    }
}

fn no_capability(what: &str) -> Status {
    Status::unimplemented(format!("ocivol volumes have no {what}; the capability is not advertised"))
}

/// The time the caller waits: `grpc-timeout`, at most eight digits and a unit.
/// Source: gRPC over HTTP/2, "Requests".
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_callers() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("a value"));
            timeout(&metadata)
        };
        assert_eq!(read("119999876u"), None, "nine digits");
        assert_eq!(read("99999876u"), Some(Duration::from_micros(99_999_876)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "5", "5s", "-5S", "5 S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }
}
