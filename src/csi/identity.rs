//! The Identity service.

use tonic::{Request, Response, Status, async_trait};

use crate::csi::call::Calls;
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
    /// Counts and logs the calls.
    pub calls: Calls,
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
        self.calls.begin("/csi.v1.Identity/GetPluginInfo").end(Ok(response))
    }

    /// None: no controller, no topology.
    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let call = self.calls.begin("/csi.v1.Identity/GetPluginCapabilities");
        call.end(Ok(GetPluginCapabilitiesResponse::default()))
    }

    /// Cheap, may be called at any rate. Neither registries nor the disk are looked at: a restart, which is what
    /// a failing probe leads to, mends neither.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let call = self.calls.begin("/csi.v1.Identity/Probe");
        let working = crate::volume::volumes::is_able_to_mount().await;
        let ready = working.map(|()| ProbeResponse { ready: Some(true) });
        call.end(ready.map_err(|error| Status::failed_precondition(error.to_string())))
    }
}
