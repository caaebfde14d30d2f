//! The store of the plugin: opened, and tried again while it cannot be used; and the command line's socket, which goes with it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::control;
use crate::control::status::AboutNode;
use crate::host::socket;
use crate::volume::volumes::Volumes;

/// How often a store that cannot be used is tried again.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Opens the store, reads what is published, and serves the command line; tries again while the store cannot be
/// used.
pub(in crate::node) async fn open(
    path: PathBuf,
    volumes: Arc<Volumes>,
    about: AboutNode,
    keeps_artifacts: bool,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let recovered = volumes.recover().await;
        let usable = volumes.puller().await.map(drop);
        match (&recovered, &usable) {
            (Ok(published), Ok(())) => tracing::info!(published, "store is open"),
            (Err(error), _) => tracing::warn!(%error, "cannot read what is published"),
            (_, Err(error)) => tracing::warn!(%error, "the store cannot be used; it is tried again"),
        }
        // Only who holds the store's lock may take its control socket.
        if usable.is_ok() {
            // What was kept while it was wanted: nobody else lets it go.
            if !keeps_artifacts && !let_go(&volumes).await {
                let volumes = Arc::clone(&volumes);
                tokio::spawn(async move {
                    while !let_go(&volumes).await {
                        tokio::select! {
                            () = volumes.stopping() => return,
                            () = tokio::time::sleep(STORE_RETRY) => {}
                        }
                    }
                });
            }
            if let Err(error) = volumes.check_locks().await {
                tracing::warn!(
                    %error,
                    "flags of mounts cannot be locked; where user namespaces are forbidden (sysctl user.max_user_namespaces), volumes are overlays, which pods with hostUsers: false cannot have"
                );
            }
            match socket::bind(&path) {
                Ok(listener) => return control::server::serve(listener, &path, volumes, about, stop).await,
                Err(error) => tracing::warn!(socket = %path.display(), %error, "cannot bind"),
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(STORE_RETRY) => {}
        }
    }
}

/// Lets go what was kept for CachedArtifacts. Whether that is done.
async fn let_go(volumes: &Volumes) -> bool {
    let done = volumes.keep_only(BTreeSet::new()).await;
    done.inspect_err(
        |error| tracing::warn!(%error, "cannot let go what was kept for CachedArtifacts; it is tried again"),
    )
    .is_ok()
}
