//! Calls for the same and for other targets, and collections, all at the same time, with delays at every step of the plugin: each
//! answer is true as long as nobody has asked for something else since.

use std::cell::RefCell;

use futures_util::future::join_all;
use ocivol::demo::kubelet::PodVolume;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::Code;

use crate::support::node::{mount_at, mounts_below};
use crate::support::world::{World, assert_published, assert_store_is_sound};
use crate::support::{Node, isolated};

const TARGETS: usize = 4;
const WORKERS: u64 = 8;
const CALLS: usize = 60;
const ARTIFACTS: [&str; 3] = ["model:v1", "image:one", "image:three"];

/// What was asked for at one target.
struct Asked {
    volume: PodVolume,
    /// Publishes that have succeeded.
    published: usize,
    running_publishes: usize,
    unpublishes: usize,
    running_unpublishes: usize,
}

struct Run {
    node: Node,
    world: World,
    targets: Vec<RefCell<Asked>>,
}

impl Run {
    async fn start() -> Self {
        let world = World::start().await;
        let mut node = Node::prepare(&["--plain-http", &world.registry.host(), "--gc-min-age", "0"]);
        node.env.insert("OCIVOL_DELAYS".into(), "20".into());
        node.run_registered().await;
        let target = |number| {
            let volume = node.volume(&format!("pod-{number}"));
            let asked =
                Asked { volume, published: 0, running_publishes: 0, unpublishes: 0, running_unpublishes: 0 };
            RefCell::new(asked)
        };
        Self { targets: (0..TARGETS).map(target).collect(), node, world }
    }

    /// One who asks, call after call.
    async fn work(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        for number in 0..CALLS {
            let at = random.random_range(0..TARGETS);
            let artifact = ARTIFACTS[random.random_range(0..ARTIFACTS.len())];
            let when = format!("seed {seed}, call {number}, target {at}");
            match random.random_range(0..100) {
                0..45 => self.publish(at, artifact, &when).await,
                45..75 => self.unpublish(at, &when).await,
                75..87 => self.stats(at, &when).await,
                87..94 => self.command(&["gc"], &when).await,
                94..97 => self.command(&["fsck"], &when).await,
                _ => self.command(&["pull", &self.world.reference(artifact)], &when).await,
            }
        }
    }

    async fn publish(&self, at: usize, artifact: &str, when: &str) {
        let target = &self.targets[at];
        let (volume, unpublishes, is_alone) = {
            let mut target = target.borrow_mut();
            target.running_publishes += 1;
            (target.volume.clone(), target.unpublishes, target.running_unpublishes == 0)
        };
        let published = self.node.publish(&volume, &self.world.reference(artifact), &[]).await;
        {
            let mut target = target.borrow_mut();
            target.running_publishes -= 1;
            target.published += usize::from(published.is_ok());
        }
        match published {
            // Nobody else gets to ask for anything while this is looked at.
            Ok(()) => {
                if is_alone && target.borrow().unpublishes == unpublishes {
                    assert_published(
                        &volume,
                        &self.world.artifacts[artifact],
                        &format!("{when}, {artifact}"),
                    );
                }
            }
            // Another artifact is there, or an unpublish came.
            Err(status) => {
                let is_told = matches!(status.code(), Code::AlreadyExists | Code::Aborted);
                assert!(is_told, "{when}, publish {artifact}: {status}");
            }
        }
    }

    async fn unpublish(&self, at: usize, when: &str) {
        let target = &self.targets[at];
        let (volume, published) = {
            let mut target = target.borrow_mut();
            target.unpublishes += 1;
            target.running_unpublishes += 1;
            (target.volume.clone(), target.published)
        };
        let unpublished = self.node.kubelet.unpublish(&volume).await;
        target.borrow_mut().running_unpublishes -= 1;
        unpublished.unwrap_or_else(|status| panic!("{when}, unpublish: {status}"));
        // A publish that gave up for it has left nothing either.
        if target.borrow().published == published && target.borrow().running_publishes == 0 {
            assert!(mount_at(&volume.target).is_none(), "{when}: something is mounted after an unpublish");
            assert!(!volume.target.exists(), "{when}: the target is still there");
        }
    }

    async fn stats(&self, at: usize, when: &str) {
        let volume = self.targets[at].borrow().volume.clone();
        if let Err(status) = self.node.kubelet.stats(&volume).await {
            assert_eq!(status.code(), Code::NotFound, "{when}, stats: {status}");
        }
    }

    async fn command(&self, arguments: &[&str], when: &str) {
        let (succeeded, answer) = self.node.command(arguments).await;
        assert!(succeeded, "{when}, {arguments:?}: {answer}");
    }
}

#[test]
fn every_answer_is_true_whatever_comes_at_the_same_time() {
    isolated(async {
        let seed = rand::random_range(0..u64::MAX / 2);
        println!("seed {seed}");
        let mut run = Run::start().await;
        for round in 0..2 {
            join_all((0..WORKERS).map(|worker| run.work(seed + round * WORKERS + worker))).await;
            let when = format!("seed {seed}, round {round}");
            assert_store_is_sound(&run.node.root, &when);
            if round == 0 {
                run.node.stop().await;
                run.node.run_registered().await;
            }
        }
        for at in 0..TARGETS {
            run.unpublish(at, "at the end").await;
        }
        assert!(mounts_below(&run.node.kubelet.directory).is_empty());
        run.command(&["gc"], "at the end").await;
        run.node.nothing_is_left_in_ingest().await;
        let trees = std::fs::read_dir(run.node.root.join("v1/images")).expect("a directory").count();
        assert_eq!(trees, 0, "what nobody uses went");
    });
}
