//! References that the configuration keeps: pulled at the start, and not collected.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::oci::reference::Reference;
use crate::tenant::Tenant;
use crate::volume::attributes::Attributes;
use crate::volume::credentials::Wanting;
use crate::volume::volumes::Volumes;

/// Until what could not be pulled is tried again; twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(300);

impl Volumes {
    /// Pulls `reference`, with the node's own credentials if there are some, until it is here, and keeps it from then on. What was pulled as the same before
    /// is kept until then.
    pub async fn pin(&self, reference: &Reference) {
        let mut retry = FIRST_RETRY;
        loop {
            let pulled = tokio::select! {
                () = self.stopping() => return,
                pulled = self.pull_pinned(reference) => pulled,
            };
            match pulled {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%reference, error, ?retry, "cannot pull what is pinned; it is tried again");
                }
            }
            tokio::select! {
                () = self.stopping() => return,
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    async fn pull_pinned(&self, reference: &Reference) -> Result<(), String> {
        let name = reference.to_string();
        let attributes = Attributes::parse(&BTreeMap::from([("reference".to_owned(), name.clone())]));
        let attributes = attributes.map_err(|error| error.to_string())?;
        let request = self.pull_request(&attributes, &Wanting::default(), &Tenant::CommandLine).await;
        let puller = self.puller().await.map_err(|error| error.to_string())?;
        let pulled = puller.pull(request).wait().await.ok_or("the pull failed")?;
        let pulled = pulled.map_err(|error| crate::failure::chain(&*error))?;
        self.collector.pin(&name, &pulled.tree.key);
        tracing::info!(reference = name, tree = %pulled.tree.key, "pinned");
        Ok(())
    }
}
