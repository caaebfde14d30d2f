//! What the suites are made of.

pub mod answers;
pub mod api_server;
pub mod attack;
pub mod blocks;
pub mod container;
pub mod debian_registry;
pub mod disk;
pub mod fixtures;
pub mod image_layout;
pub mod kubelet;
pub mod layers;
pub mod listing;
pub mod metrics;
pub mod named_tests;
pub mod namespace;
pub mod node;
pub mod noise;
pub mod oracles;
pub mod raw;
pub mod records;
pub mod scripted;
pub mod slow;
pub mod snapshot;
pub mod tenants;
pub mod tls;
pub mod wire;
pub mod world;

pub use namespace::isolated;
pub use node::Node;
pub use noise::noise;
pub use scripted::Scripted;

use std::time::{Duration, Instant};

/// How long a test waits for what has to happen, also on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `condition` holds; fails the test when it does not for too long.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen in {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Time on the processors that a process and those of its children that have ended have used, in the kernel too.
pub fn processor_time(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // `man 5 proc_pid_stat`: fields 14 to 17; field 2 is a name in parentheses.
    let fields = text.rsplit(')').next().expect("a name").split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}

/// Frames of zstd whose decoder needs `1 << window` bytes: `zstd --long=25` for 32 MiB.
pub fn zstd_with_window(content: &[u8], window: u32) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).expect("memory");
    encoder.window_log(window).expect("a window");
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}
