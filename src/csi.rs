//! The CSI services: Identity and Node on the plugin's unix socket, with registration at kubelet; Identity and Controller on that of
//! external-provisioner.
//!
//! Source: the Container Storage Interface v1.12.0. Nothing here knows registries, stores or mounts: requests
//! are checked, handed to [`crate::volume`] and [`crate::provision`], and errors become gRPC codes in one place.

pub mod authority;
pub mod call;
pub mod capability;
pub mod controller;
pub mod identity;
pub mod metrics;
pub mod node;
pub mod registration;
pub mod request;
mod secretive;
pub mod status;
pub mod transport;

/// The generated code of `proto/csi/v1/csi.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// The generated code of `proto/pluginregistration/v1/api.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod pluginregistration {
    tonic::include_proto!("pluginregistration");
}
