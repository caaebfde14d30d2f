//! kubelet v1.36 around the calls: what it keeps on disk, which errors it takes as final, what it does when it starts,
//! and how it cleans up after pods. Source: pkg/volume/csi/csi_mounter.go, pkg/kubelet/kubelet_volumes.go.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ocivol::demo::kubelet::{Kubelet, PodVolume};
use tonic::{Code, Status};

/// The pods of a node, each with one inline volume.
pub struct Pods {
    kubelet: Kubelet,
    pods: BTreeMap<String, Pod>,
}

struct Pod {
    volume: PodVolume,
    reference: String,
    /// It was mounted once, or may have been: it has to be unmounted.
    uncertain: bool,
}

impl Pods {
    pub fn new(kubelet: &Kubelet) -> Self {
        Self { kubelet: kubelet.clone(), pods: BTreeMap::new() }
    }

    /// A pod is scheduled here.
    pub fn add(&mut self, pod: &str, reference: &str) -> PodVolume {
        let volume = self.kubelet.prepare(pod, "model").expect("directories");
        let pod_state = Pod { volume: volume.clone(), reference: reference.to_owned(), uncertain: false };
        self.pods.insert(pod.to_owned(), pod_state);
        volume
    }

    pub fn volume(&self, pod: &str) -> &PodVolume {
        &self.pods[pod].volume
    }

    /// Sets the volume up: one call, after which kubelet would wait and try again.
    pub async fn sync(&mut self, name: &str) -> Result<(), Status> {
        let pod = self.pods.get_mut(name).expect("a pod");
        let parent = pod.volume.target.parent().expect("a parent").to_owned();
        std::fs::create_dir_all(&parent).expect("directories");
        std::fs::write(parent.join("vol_data.json"), "{}").expect("kubelet's own file");
        let attributes = [("reference", pod.reference.as_str())];
        let request = self.kubelet.publish_request(&pod.volume, &attributes, &[]);
        let result = self.kubelet.publish(request).await;
        match &result {
            Ok(()) => pod.uncertain = true,
            Err(status) if is_final(status.code()) && !pod.uncertain => remove_mount_dir(&parent),
            Err(_) => pod.uncertain = true,
        }
        result
    }

    /// Sets the volume up as often as it takes, with waits that double, as kubelet does; they begin at `first`, where
    /// kubelet begins at half a second. Returns how often it asked.
    pub async fn sync_until_mounted(&mut self, name: &str, first: Duration) -> usize {
        let mut wait = first;
        for tries in 1..12 {
            if self.sync(name).await.is_ok() {
                return tries;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(122));
        }
        panic!("{name} is still not mounted");
    }

    /// kubelet starts: it knows nothing but the directories, and sets every volume up again.
    pub async fn restart(&mut self) -> Result<(), Status> {
        let names: Vec<String> = self.pods.keys().cloned().collect();
        for name in names {
            self.sync(&name).await?;
        }
        Ok(())
    }

    /// The pod goes: kubelet unmounts with ID and path alone, and removes its directories.
    pub async fn remove(&mut self, name: &str) -> Result<(), Status> {
        let pod = self.pods.get(name).expect("a pod");
        if pod.uncertain {
            self.kubelet.unpublish(&pod.volume).await?;
        }
        remove_mount_dir(pod.volume.target.parent().expect("a parent"));
        self.pods.remove(name);
        Ok(())
    }

    /// The pod goes after an error that was final: the plugin is not asked.
    pub fn forget(&mut self, name: &str) {
        self.pods.remove(name);
    }

    /// Removes what is left of pods that are gone, by rmdir alone: a file in the way would stay, and be reported.
    pub fn clean_orphans(&self) {
        for entry in std::fs::read_dir(self.kubelet.directory.join("pods")).expect("pods") {
            let pod = entry.expect("an entry");
            if !self.pods.contains_key(&*pod.file_name().to_string_lossy()) {
                for directory in
                    ["volumes/kubernetes.io~csi/model", "volumes/kubernetes.io~csi", "volumes", ""]
                {
                    let path = pod.path().join(directory);
                    if path.exists() {
                        std::fs::remove_dir(&path)
                            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    }
                }
            }
        }
    }
}

/// `isFinalError` of csi_client.go.
fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// `removeMountDir`: the target, kubelet's own file, and the directory of both.
fn remove_mount_dir(parent: &Path) {
    for (path, is_directory) in
        [(parent.join("mount"), true), (parent.join("vol_data.json"), false), (parent.to_owned(), true)]
    {
        let removed = if is_directory { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", path.display());
        }
    }
}
