//! What has to be so for volumes to be published.

use std::sync::Arc;

use tokio::sync::watch;

use crate::control::status::{About, Check};
use crate::csi::registration::State;
use crate::host::metric::Pairs;
use crate::node::config::NodeConfig;
use crate::volume::volumes::Volumes;

/// Looks at it, without blocking. Cheap to clone.
#[derive(Clone)]
pub(in crate::node) struct Checks {
    volumes: Arc<Volumes>,
    state: Arc<watch::Sender<State>>,
    must_register: bool,
    /// Whether mounts are seen to reach the pods; else it is not known, as where this is no container.
    propagates: bool,
}

impl Checks {
    pub(in crate::node) fn new(
        config: &NodeConfig,
        volumes: &Arc<Volumes>,
        state: &Arc<watch::Sender<State>>,
        propagates: bool,
    ) -> Self {
        let (volumes, state) = (Arc::clone(volumes), Arc::clone(state));
        Self { volumes, state, must_register: config.registration.is_some(), propagates }
    }

    /// Why kubelet does not know the driver.
    ///
    /// # Errors
    /// In words.
    pub(in crate::node) fn registration(&self) -> Result<(), String> {
        match &*self.state.borrow() {
            State::Waiting if self.must_register => Err("kubelet has not registered the plugin".to_owned()),
            State::Refused(reason) => Err(format!("kubelet refused the registration: {reason}")),
            State::Waiting | State::Registered => Ok(()),
        }
    }

    pub(in crate::node) fn is_registered(&self) -> bool {
        self.registration().is_ok()
    }

    pub(in crate::node) fn gauges(&self) -> Vec<(Pairs, f64)> {
        let gauge = |labels: Pairs, holds: bool| (labels, f64::from(u8::from(holds)));
        vec![
            gauge(&[("check", "registered")], self.is_registered()),
            gauge(&[("check", "store")], self.volumes.has_store()),
            gauge(&[("check", "propagation")], self.propagates),
        ]
    }

    /// For `ocivol status`.
    pub(in crate::node) fn about(&self, config: &NodeConfig) -> About {
        let check = |name: &str, ok: bool, message: &str| Check {
            name: name.to_owned(),
            ok,
            message: message.to_owned(),
        };
        let registration = match (self.registration(), self.must_register) {
            (Ok(()), true) => check("registered", true, "kubelet knows the driver"),
            (Ok(()), false) => check("registered", true, "it is not to be registered"),
            (Err(reason), _) => check("registered", false, &reason),
        };
        let store = match self.volumes.has_store() {
            true => check("store", true, "open"),
            false => check("store", false, "not open; the log says why"),
        };
        let propagation = match self.propagates {
            true => check("propagation", true, "mounts reach the pods"),
            false => {
                let message = "the directory of pods is not on a shared mount; it need not be where this is no container";
                check("propagation", false, message)
            }
        };
        About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            driver: config.driver_name.clone(),
            node: config.node_id.clone(),
            ready: registration.ok && store.ok,
            checks: vec![registration, store, propagation],
            uses_api_server: config.credentials.cluster.is_some(),
        }
    }
}
