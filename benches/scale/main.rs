//! How time and memory grow: with the layers of an image, with its files, with the bytes of a model, and with the volumes that are published at
//! once; with a plugin that has one core, and with one that has two. And what the stages take that everything goes through.
//!
//! `make bench-scale` runs it, as root; its tables are in `docs/performance.md`. Each point has a plugin of its own, with an empty store on an ext4 of its own,
//! and is measured `ROUNDS` (3) times: the least counts, because what else the machine does can only add to it. The registry is this
//! process, which may use all cores.
//!
//! `LAYERS` (`1 8 32 127`), `FILES` (`1000 10000 100000 980000`; a tree has at most 1,000,000), `MIB` (`64 256 1024 4096`; with as much room on
//! the disk) and `VOLUMES` (`1 10 50 200`) say what is measured; a curve of which that is empty is left out.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::cast_possible_truncation)]

#[path = "../../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

mod curves;
mod stages;

use curves::{CURVES, Curve, Measured};
use support::namespace::separate_mounts;

/// A step of a curve that costs more than so many times per unit what the curve before it costs bends up,
const BEND: f64 = 1.5;
/// if that makes so many seconds.
const NOTICEABLE: f64 = 0.1;

fn main() {
    separate_mounts();
    stages::print();
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    for curve in CURVES {
        let points = std::env::var(curve.variable).unwrap_or_else(|_| curve.points.to_owned());
        let points: Vec<u64> =
            points.split_whitespace().map(|text| text.parse().expect("a number")).collect();
        if !points.is_empty() {
            runtime.block_on(print(&curve, &points, rounds));
        }
    }
}

/// Measures a curve, and prints its table.
async fn print(curve: &Curve, points: &[u64], rounds: usize) {
    println!("\n{}\n", curve.title);
    println!("| {} | cores | seconds | {} | CPU seconds | peak memory, MB | |", curve.unit, curve.each.0);
    println!("|---|---|---|---|---|---|---|");
    // For one core and for two, what was measured at each point.
    let mut measured: [Vec<Measured>; 2] = Default::default();
    for point in points {
        let at_point = curve.measure(*point, rounds).await;
        for (cores, found) in (1..).zip(at_point) {
            let curve_so_far = &mut measured[cores - 1];
            curve_so_far.push(found);
            let seconds: Vec<f64> = curve_so_far.iter().map(|found| found.seconds).collect();
            let bends = bends_up(&points[..seconds.len()], &seconds);
            println!(
                "| {point} | {cores} | {:.3} | {:.1} | {:.2} | {:.0} | {} |",
                found.seconds,
                (curve.each.1)(*point, found.seconds),
                found.processor,
                found.peak / 1e6,
                if bends { "**bends up**" } else { "" }
            );
        }
    }
}

/// Whether the last step of a curve is steeper than the curve before it.
fn bends_up(points: &[u64], seconds: &[f64]) -> bool {
    let [first, .., before, last] = seconds else { return false };
    let [first_point, .., before_point, last_point] = points else { return false };
    let slope = (before - first).max(0.0) / (before_point - first_point) as f64;
    let expected = before + slope * (last_point - before_point) as f64 * BEND;
    *last > expected + NOTICEABLE
}
