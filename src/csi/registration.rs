//! Registration with kubelet, without a sidecar.
//!
//! kubelet watches a directory. A socket that appears there is asked what it serves; when it disappears the
//! driver is unregistered. So the socket is made after the CSI socket serves, is removed first when the plugin
//! stops, and is made again when somebody removes it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

use crate::csi::pluginregistration::registration_client::RegistrationClient;
use crate::csi::pluginregistration::registration_server::{Registration, RegistrationServer};
use crate::csi::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use crate::csi::transport;
use crate::host::{accept, socket};

/// How registration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// kubelet has not said anything yet.
    Waiting,
    /// kubelet knows the driver.
    Registered,
    /// kubelet refused, and why. It tries again by itself.
    Refused(String),
}

/// What to register.
#[derive(Debug, Clone)]
pub struct RegistrationSettings {
    /// The directory that kubelet watches.
    pub directory: PathBuf,
    /// The driver's name.
    pub driver_name: String,
    /// The CSI socket as kubelet sees it.
    pub endpoint: String,
}

/// How often the socket is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Times in a row that our own socket may answer wrongly, or not at all, before it is made again.
const WRONG_ANSWERS: u32 = 5;
/// Times in a row that it may take too long: on a node that is busy that is no sign of anything.
const SLOW_ANSWERS: u32 = 60;
/// kubelet waits as long for the answer.
const ANSWER_TIME: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Service {
    settings: Arc<RegistrationSettings>,
    state: Arc<watch::Sender<State>>,
}

impl RegistrationSettings {
    /// The socket's path. By convention `<driver>-reg.sock`.
    pub fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}-reg.sock", self.driver_name))
    }
}

/// The directory in which plugins register was removed while it was mounted here: what kubelet makes anew under the
/// same name is another one, which only a new container sees.
#[derive(Debug, thiserror::Error)]
#[error(
    "{directory} was removed on the node, and this container still has the old one; it ends, to be started again"
)]
pub struct Gone {
    directory: String,
}

/// Keeps the registration socket there until `stop` is true, then removes it.
///
/// # Errors
/// [`Gone`]: it can never register again.
pub async fn run(
    settings: RegistrationSettings,
    state: Arc<watch::Sender<State>>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Gone> {
    let path = settings.socket();
    let service = Service { settings: Arc::new(settings), state };
    let mut serving: Option<Serving> = None;
    let (mut wrong, mut slow) = (0, 0);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            _ = looks.tick() => {}
        }
        let ours = serving.as_ref().is_some_and(|serving| serving.is_ours(&path));
        if ours {
            // Taking the socket away unregisters the driver: a busy moment is no reason.
            match ask(&path, &service.settings.driver_name).await {
                Answer::Right => (wrong, slow) = (0, 0),
                Answer::Wrong => wrong += 1,
                Answer::Late => slow += 1,
            }
            if wrong < WRONG_ANSWERS && slow < SLOW_ANSWERS {
                continue;
            }
        }
        (wrong, slow) = (0, 0);
        drop(serving.take());
        service.state.send_if_modified(|state| {
            let changed = *state == State::Registered;
            if changed {
                *state = State::Waiting;
            }
            changed
        });
        match Serving::start(&path, service.clone()) {
            Ok(started) => {
                tracing::info!(socket = %path.display(), "waiting for kubelet to register");
                serving = Some(started);
            }
            // kubelet makes the directory; until then there is nobody to register with.
            Err(error) => {
                tracing::warn!(socket = %path.display(), %error, "cannot make the registration socket");
                let directory = path.parent().unwrap_or(&path);
                // What is mounted exists, and has no name left.
                if std::fs::metadata(directory).is_ok_and(|found| found.nlink() == 0) {
                    return Err(Gone { directory: directory.display().to_string() });
                }
            }
        }
    }
    if serving.is_some_and(|serving| serving.is_ours(&path))
        && let Err(error) = std::fs::remove_file(&path)
    {
        tracing::warn!(socket = %path.display(), %error, "cannot remove the registration socket");
    }
    Ok(())
}

/// A socket that is served. Dropped, it is not served any more; its file stays.
struct Serving {
    identity: Option<(u64, u64)>,
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    fn start(path: &Path, service: Service) -> std::io::Result<Self> {
        let listener = socket::bind(path)?;
        let task = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(service));
            if let Err(error) = server.serve_with_incoming(transport::private_grpc(listener)).await {
                tracing::error!(%error, "the registration socket failed");
            }
        });
        Ok(Self { identity: socket::identity(path), task })
    }

    fn is_ours(&self, path: &Path) -> bool {
        self.identity.is_some() && socket::identity(path) == self.identity && !self.task.is_finished()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What our own socket says.
enum Answer {
    Right,
    Wrong,
    /// Nothing in the time that kubelet waits.
    Late,
}

/// Asks the socket what kubelet will ask, and as kubelet does. Who has no descriptor to ask with knows nothing against it.
async fn ask(path: &Path, driver_name: &str) -> Answer {
    let ask = async {
        let channel = match transport::connect_by_path(path).await {
            Ok(channel) => channel,
            Err(error) => return accept::is_shortage(&error),
        };
        let info = RegistrationClient::new(channel).get_info(InfoRequest {}).await;
        info.is_ok_and(|info| info.into_inner().name == driver_name)
    };
    match tokio::time::timeout(ANSWER_TIME, ask).await {
        Ok(true) => Answer::Right,
        Ok(false) => Answer::Wrong,
        Err(_) => Answer::Late,
    }
}

#[async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.settings.driver_name.clone(),
            endpoint: self.settings.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        let state = if plugin_registered {
            tracing::info!("registered with kubelet");
            State::Registered
        } else {
            let error = crate::failure::one_line(&error);
            tracing::error!(error, "kubelet refused the registration; it tries again by itself");
            State::Refused(error)
        };
        self.state.send_replace(state);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
