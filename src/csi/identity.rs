//! The Identity service.

use tonic::{Request, Response, Status, async_trait};

use crate::csi::metrics::Metrics;
use crate::csi::v1::identity_server::Identity;
use crate::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    ProbeRequest, ProbeResponse,
};

/// Says who the plugin is.
#[derive(Debug, Clone)]
pub struct IdentityService {
    /// The driver's name, equal to the CSIDriver object's.
    pub driver_name: String,
    /// Counts the calls.
    pub metrics: Metrics,
}

#[async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let response = GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        };
        self.metrics.observe("/csi.v1.Identity/GetPluginInfo", async { Ok(response) }).await
    }

    /// None: no controller, no topology.
    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let response = async { Ok(GetPluginCapabilitiesResponse::default()) };
        self.metrics.observe("/csi.v1.Identity/GetPluginCapabilities", response).await
    }

    /// Cheap, may be called at any rate. Neither registries nor the disk are looked at: a restart, which is what
    /// a failing probe leads to, mends neither.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let check = async {
            let working = crate::volume::volumes::is_able_to_mount().await;
            working.map_err(|error| Status::failed_precondition(error.to_string()))?;
            Ok(ProbeResponse { ready: Some(true) })
        };
        self.metrics.observe("/csi.v1.Identity/Probe", check).await
    }
}
