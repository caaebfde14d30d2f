//! Counters of transfers.

use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::host::metric::{Counts, Labels, Pairs, Seconds};

/// Counters of all transfers of this process. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Bytes that came.
    pub fetched: Counts<Origin>,
    /// Content that was not what it should have been.
    pub wrong: Counts<Wrong>,
    /// What pulls take their time for.
    pub busy: Seconds<Stage>,
    waiting: Gauge,
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The registry, or storage that it redirects to.
    Registry,
    /// A mirror that the operator has named.
    Mirror,
    /// An image layout on the node.
    Local,
}

/// What something takes its time for. Stages of one pull run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A download waits for its turn.
    Wait,
    /// A connection waits for the answer, or for its next bytes.
    Network,
    /// They are written to the disk as they come.
    Write,
    /// They are hashed.
    Verify,
    /// They are decompressed, and files are made of them.
    Unpack,
    /// A tree is linked of what layers hold.
    Link,
}

/// What is wrong with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Other bytes than those of the digest, or another number of them.
    Digest,
    /// An uncompressed layer is not what the image's config promises.
    DiffId,
}

impl Labels for Origin {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Registry, &[("source", "registry")]),
        (Self::Mirror, &[("source", "mirror")]),
        (Self::Local, &[("source", "local")]),
    ];
}

impl Labels for Stage {
    const ALL: &'static [(Self, Pairs)] = &[
        (Self::Wait, &[("stage", "wait")]),
        (Self::Network, &[("stage", "network")]),
        (Self::Write, &[("stage", "write")]),
        (Self::Verify, &[("stage", "verify")]),
        (Self::Unpack, &[("stage", "unpack")]),
        (Self::Link, &[("stage", "link")]),
    ];
}

impl Labels for Wrong {
    const ALL: &'static [(Self, Pairs)] =
        &[(Self::Digest, &[("kind", "digest")]), (Self::DiffId, &[("kind", "diff_id")])];
}

/// Counts as waiting until dropped.
pub(in crate::transfer) struct Waits {
    waiting: Gauge,
    busy: Seconds<Stage>,
    began: Instant,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.waiting.dec();
        self.busy.add(Stage::Wait, self.began.elapsed());
    }
}

impl Metrics {
    pub(in crate::transfer) fn waits(&self) -> Waits {
        self.waiting.inc();
        Waits { waiting: self.waiting.clone(), busy: self.busy.clone(), began: Instant::now() }
    }

    /// Makes them part of what is served.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "ocivol_pull_bytes",
            "Bytes of blobs that were fetched, by source",
            self.fetched.clone(),
        );
        registry.register(
            "ocivol_pull_busy_seconds",
            "What pulls took their time for, by stage, of which those of one pull run at the same time: wait for their turn to download, \
             network (connections that wait for bytes), write to the disk, verify (hash), unpack layers, link files to trees",
            self.busy.clone(),
        );
        registry.register(
            "ocivol_verification_failures",
            "Content that was not what its digest says, and was not used, by kind",
            self.wrong.clone(),
        );
        registry.register(
            "ocivol_downloads_waiting",
            "Downloads of blobs that wait for their turn",
            self.waiting.clone(),
        );
    }
}
