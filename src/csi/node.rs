//! The Node service. Every method checks, hands over, and translates; nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, async_trait};

use crate::csi::call::{Call, Calls};
use crate::csi::metrics::{PUBLISH, STATS, UNPUBLISH};
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
use crate::failure::one_line;
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
    /// Counts and logs the calls.
    pub calls: Calls,
}

impl NodeService {
    async fn publish(
        &self,
        request: Request<NodePublishVolumeRequest>,
        call: &mut Call,
    ) -> Result<NodePublishVolumeResponse, Status> {
        let deadline = Instant::now() + hold_time(timeout(request.metadata()));
        let message = request.into_inner();
        tracing::debug!(request = ?message, "publish");
        let target_path = message.target_path.clone();
        call.volume = Some(one_line(&message.volume_id));
        call.target = Some(one_line(&target_path));
        call.namespace = request::namespace(&message);
        // Secrets of a megabyte, and many patterns, are work.
        let allow_writers = self.allow_writers;
        let check = move || request::publish(message, allow_writers);
        let checked = blocking::run(Lane::Mounts, check).await?;
        call.namespace = Some(checked.tenant.to_string());
        call.pod = checked.wanting.pod.as_ref().map(|pod| one_line(&pod.name));
        call.reference = Some(checked.attributes.reference.to_string());
        let is_layout = checked.attributes.reference.is_layout();
        let target =
            self.volumes.check_target(&target_path).await.map_err(|error| status::from_volume(&error))?;
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
            Published::AlreadyThere => call.source = Some("mounted before"),
            Published::Mounted(pulled) => {
                call.digest = Some(pulled.digest.to_string());
                (call.bytes, call.fetched) = (Some(pulled.tree.image.size), Some(pulled.fetched));
                call.source = Some(match (pulled.fetched, is_layout) {
                    (0, _) => "store",
                    (_, true) => "layout",
                    (_, false) => "registry",
                });
            }
        }
        Ok(NodePublishVolumeResponse {})
    }

    async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
        call: &mut Call,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        let NodeUnpublishVolumeRequest { volume_id, target_path } = request;
        call.volume = Some(one_line(&volume_id));
        call.target = Some(one_line(&target_path));
        request::volume_id(&volume_id)?;
        if target_path.is_empty() {
            return Err(status::missing("target_path"));
        }
        let target =
            self.volumes.check_target(&target_path).await.map_err(|error| status::from_volume(&error))?;
        let record = self.volumes.unpublish(target).await.map_err(|error| status::from_volume(&error))?;
        if let Some(record) = record {
            let pod = record.pod.as_deref().and_then(|pod| pod.split_once('/'));
            (call.namespace, call.pod) = pod.map(|(one, two)| (one.to_owned(), two.to_owned())).unzip();
            call.reference = Some(record.reference);
            call.digest = Some(record.manifest.to_string());
        }
        Ok(NodeUnpublishVolumeResponse {})
    }

    async fn stats(
        &self,
        request: NodeGetVolumeStatsRequest,
        call: &mut Call,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        let NodeGetVolumeStatsRequest { volume_id, volume_path, .. } = request;
        call.volume = Some(one_line(&volume_id));
        call.target = Some(one_line(&volume_path));
        request::volume_id(&volume_id)?;
        if volume_path.is_empty() {
            return Err(status::missing("volume_path"));
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
    }

    fn unsupported<T>(&self, method: &'static str, what: &str) -> Result<Response<T>, Status> {
        self.calls.begin(method).end(Err(Status::unimplemented(format!(
            "ocivol volumes have no {what}; the capability is not advertised"
        ))))
    }
}

#[async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let mut call = self.calls.begin(PUBLISH);
        let result = call.parent().scope(self.publish(request, &mut call)).await;
        call.end(result)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let mut call = self.calls.begin(UNPUBLISH);
        let result = call.parent().scope(self.unpublish(request.into_inner(), &mut call)).await;
        call.end(result)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let mut call = self.calls.begin(STATS);
        let result = self.stats(request.into_inner(), &mut call).await;
        call.end(result)
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
        let call = self.calls.begin("/csi.v1.Node/NodeGetCapabilities");
        call.end(Ok(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let response = NodeGetInfoResponse { node_id: self.node_id.clone(), max_volumes_per_node: 0 };
        self.calls.begin("/csi.v1.Node/NodeGetInfo").end(Ok(response))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        self.unsupported("/csi.v1.Node/NodeStageVolume", "staging")
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        self.unsupported("/csi.v1.Node/NodeUnstageVolume", "staging")
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        self.unsupported("/csi.v1.Node/NodeExpandVolume", "expansion")
    }
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
