//! The cluster, as `kubectl` sees it: makes and removes objects, and waits for what becomes of them.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod};
use k8s_openapi::api::storage::v1::CSINode;
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::pod::DRIVER;

/// How long anything may take that a scenario waits for.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A connection to the API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

/// The pods of one namespace.
#[derive(Clone)]
pub struct Pods {
    api: Api<Pod>,
    events: Api<Event>,
    pub namespace: String,
    client: Client,
}

impl Cluster {
    /// For the API server at `url`, with a bearer token.
    pub fn connect(url: &str, token: &str) -> Self {
        let mut config = Config::new(url.parse().expect("a URL"));
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(token.to_owned().into());
        Self { client: Client::try_from(config).expect("a client") }
    }

    /// Waits until the API server is ready.
    pub async fn serves(&self) {
        let pods: Api<Namespace> = Api::all(self.client.clone());
        eventually("the API server", || async { pods.get("kube-system").await.ok() }).await;
    }

    /// Waits until kubelet says that the node is ready, and nothing keeps pods away from it.
    pub async fn node_is_ready(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let since = k8s_openapi::jiff::Timestamp::now() - Duration::from_secs(1);
        eventually("the node", || async {
            let node = nodes.get("node-a").await.ok()?;
            let ready = node.status?.conditions?.into_iter().find(|it| it.type_ == "Ready")?;
            let fresh = ready.last_heartbeat_time.is_some_and(|time| time.0 >= since);
            (ready.status == "True" && fresh).then_some(())
        })
        .await;
    }

    /// Whether kubelet says this of the node.
    pub async fn has_condition(&self, name: &str) -> bool {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let status = nodes.get("node-a").await.expect("the node").status;
        let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == name && condition.status == "True")
    }

    /// Makes a namespace, or leaves the one there is.
    pub async fn apply_namespace(&self, namespace: Value) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let name = namespace["metadata"]["name"].as_str().expect("a name").to_owned();
        let patch = Patch::Apply(&namespace);
        api.patch(&name, &PatchParams::apply("e2e").force(), &patch).await.expect("a namespace");
    }

    /// A namespace of a scenario's own, with these labels.
    pub async fn namespace(&self, name: &str, labels: Value) -> Pods {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.apply_namespace(namespace).await;
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(self.client.clone(), name);
        eventually("the default service account", || async { accounts.get("default").await.ok() }).await;
        self.pods(name)
    }

    /// The pods of a namespace that is there.
    pub fn pods(&self, namespace: &str) -> Pods {
        Pods {
            api: Api::namespaced(self.client.clone(), namespace),
            events: Api::namespaced(self.client.clone(), namespace),
            namespace: namespace.to_owned(),
            client: self.client.clone(),
        }
    }

    /// Makes an object that belongs to no namespace.
    pub async fn create<K>(&self, object: Value)
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + serde::Serialize,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(object).expect("an object"))
            .await
            .expect("made");
    }

    /// An object that belongs to no namespace, if it is there.
    pub async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone()).get_opt(name).await.ok().flatten()
    }

    /// Removes an object that belongs to no namespace.
    pub async fn delete<K>(&self, name: &str)
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.client.clone());
        api.delete(name, &DeleteParams::default()).await.expect("removed");
    }

    /// Removes an object that belongs to no namespace, if it is there, and waits until it is gone.
    pub async fn delete_if_there<K>(&self, name: &str)
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let _ = api.delete(name, &DeleteParams::default()).await; // It may not be there.
        eventually(&format!("the end of {name}"), || async {
            api.get_opt(name).await.ok()?.is_none().then_some(())
        })
        .await;
    }

    /// Waits until the plugin's pod is ready and of the DaemonSet's present generation, and kubelet knows the driver.
    pub async fn plugin_is_ready(&self) {
        self.daemon_set_has("ocivol", 1).await;
        eventually("the driver's registration", || async {
            self.drivers().await.contains(&DRIVER.to_owned()).then_some(())
        })
        .await;
    }

    /// Waits until a DaemonSet of the plugin has so many pods, all ready and of its present generation.
    pub async fn daemon_set_has(&self, name: &str, pods: i32) {
        let sets: Api<k8s_openapi::api::apps::v1::DaemonSet> = Api::namespaced(self.client.clone(), "ocivol");
        eventually("the DaemonSet", || async {
            let set = sets.get(name).await.ok()?;
            let status = set.status?;
            let current = status.observed_generation == set.metadata.generation;
            (current
                && status.desired_number_scheduled == pods
                && status.current_number_scheduled == pods
                && status.updated_number_scheduled.unwrap_or_default() == pods
                && status.number_available.unwrap_or_default() == pods)
                .then_some(())
        })
        .await;
    }

    /// Says of the node what a label says; `null` takes it away.
    pub async fn label_node(&self, label: &str, value: Value) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let patch = json!({"metadata": {"labels": {label: value}}});
        nodes.patch("node-a", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("patched");
    }

    /// Changes the DaemonSet.
    pub async fn patch_plugin(&self, patch: Value) {
        let sets: Api<k8s_openapi::api::apps::v1::DaemonSet> = Api::namespaced(self.client.clone(), "ocivol");
        sets.patch("ocivol", &PatchParams::default(), &Patch::Merge(&patch)).await.expect("patched");
    }

    /// The drivers that kubelet knows.
    pub async fn drivers(&self) -> Vec<String> {
        let nodes: Api<CSINode> = Api::all(self.client.clone());
        let node = nodes.get("node-a").await.ok();
        node.map(|node| node.spec.drivers.into_iter().map(|driver| driver.name).collect()).unwrap_or_default()
    }
}

impl Pods {
    /// Makes a pod.
    pub async fn create(&self, pod: Value) {
        self.try_create(pod).await.expect("a pod");
    }

    /// Makes a pod; fails as the API server does.
    pub async fn try_create(&self, pod: Value) -> Result<(), kube::Error> {
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        self.api.create(&PostParams::default(), &pod).await.map(drop)
    }

    /// Makes an object of this namespace.
    pub async fn create_other<K>(&self, object: Value)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + serde::Serialize,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        api.create(&PostParams::default(), &serde_json::from_value(object).expect("an object"))
            .await
            .expect("made");
    }

    /// An object of this namespace, if it is there.
    pub async fn get_other<K>(&self, name: &str) -> Option<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        api.get_opt(name).await.ok().flatten()
    }

    /// Removes an object of this namespace.
    pub async fn delete_other<K>(&self, name: &str)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        api.delete(name, &DeleteParams::default()).await.expect("removed");
    }

    /// Makes a pod and waits until all its containers run.
    pub async fn run(&self, pod: Value) -> Pod {
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        self.create(pod).await;
        self.running(&name).await
    }

    /// Waits until all containers of a pod run.
    pub async fn running(&self, name: &str) -> Pod {
        self.eventually(name, "run", |pod| {
            let status = pod.status.as_ref()?;
            let containers = status.container_statuses.as_ref()?;
            let all =
                containers.iter().all(|it| it.state.as_ref().is_some_and(|state| state.running.is_some()));
            (all && status.phase.as_deref() == Some("Running")).then(|| pod.clone())
        })
        .await
    }

    /// Waits until a pod's container has printed `end` as a line; returns what it printed.
    pub async fn printed(&self, name: &str, end: &str) -> String {
        eventually(&format!("{name} prints {end}"), || async {
            let log = self.api.logs(name, &LogParams::default()).await.ok()?;
            log.lines().any(|line| line == end).then_some(log)
        })
        .await
    }

    /// Makes a pod whose container ends, and waits for that; returns its exit status and what it printed.
    pub async fn outcome(&self, pod: Value) -> (i32, String) {
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        self.create(pod).await;
        let status = self
            .eventually(&name, "end", |pod| {
                let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
                Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
            })
            .await;
        let log = self.api.logs(&name, &LogParams::default()).await.expect("a log");
        (status, log)
    }

    /// Waits for an event of a pod whose message has `part` in it; returns the message.
    pub async fn event(&self, name: &str, part: &str) -> String {
        eventually(&format!("an event of {name} with {part:?}"), || async {
            self.events_of(name).await.into_iter().find(|message| message.contains(part))
        })
        .await
    }

    /// The messages of all events of a pod.
    pub async fn events_of(&self, name: &str) -> Vec<String> {
        let of_pod = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = self.events.list(&of_pod).await.map(|list| list.items).unwrap_or_default();
        events.into_iter().filter_map(|event| event.message).collect()
    }

    /// Removes a pod without waiting.
    pub async fn delete(&self, name: &str) {
        self.api.delete(name, &DeleteParams::default()).await.expect("removed");
    }

    /// Removes a pod as `kubectl delete --force` does.
    pub async fn delete_by_force(&self, name: &str) {
        self.api.delete(name, &DeleteParams::default().grace_period(0)).await.expect("removed");
    }

    /// Removes all pods, and waits until the API server has forgotten them.
    pub async fn clear(&self) {
        let pods = self.list().await;
        for pod in &pods {
            self.delete(pod.metadata.name.as_deref().expect("a name")).await;
        }
        self.gone().await;
    }

    /// Waits until there is no pod.
    pub async fn gone(&self) {
        eventually("the end of all pods", || async { self.list().await.is_empty().then_some(()) }).await;
    }

    /// All pods.
    pub async fn list(&self) -> Vec<Pod> {
        self.api.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default()
    }

    async fn eventually<T>(&self, name: &str, what: &str, check: impl Fn(&Pod) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let pod = self.api.get(name).await;
            if let Some(found) = pod.as_ref().ok().and_then(&check) {
                return found;
            }
            if began.elapsed() > PATIENCE {
                let status = pod.map(|pod| serde_json::to_string(&pod.status).expect("JSON"));
                panic!("{name} does not {what}: {status:?}\nevents: {:#?}", self.events_of(name).await);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// How often the containers of a pod were started again.
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}

/// Waits until `check` has a result.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} did not happen in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
