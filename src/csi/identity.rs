//! The Identity service.

use tonic::{Request, Response, Status, async_trait};

use crate::csi::call::Calls;
use crate::csi::v1::identity_server::Identity;
use crate::csi::v1::plugin_capability::{Service, Type, service};
use crate::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};

/// Says who the plugin is.
#[derive(Debug, Clone)]
pub struct IdentityService {
    /// The driver's name, equal to the CSIDriver object's.
    pub driver_name: String,
    /// Whether the cluster runs a controller: every instance says the same, whichever it is (CSI v1.12.0, GetPluginCapabilities).
    pub with_controller: bool,
    /// What this instance needs for its work.
    pub works: Works,
    /// Counts and logs the calls.
    pub calls: Calls,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Works {
    /// It mounts, on a node.
    Mounts,
    /// It asks registries.
    Asks,
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

    /// A controller, where the cluster has one; no topology.
    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let call = self.calls.begin("/csi.v1.Identity/GetPluginCapabilities");
        let controller = Service { r#type: service::Type::ControllerService.into() };
        let controller = PluginCapability { r#type: Some(Type::Service(controller)) };
        let capabilities = self.with_controller.then_some(controller).into_iter().collect();
        call.end(Ok(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Cheap, may be called at any rate. Neither registries nor the disk are looked at: a restart, which is what
    /// a failing probe leads to, mends neither.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let call = self.calls.begin("/csi.v1.Identity/Probe");
        let working = match self.works {
            Works::Mounts => crate::volume::volumes::is_able_to_mount().await,
            Works::Asks => Ok(()),
        };
        let ready = working.map(|()| ProbeResponse { ready: Some(true) });
        call.end(ready.map_err(|error| Status::failed_precondition(error.to_string())))
    }
}
