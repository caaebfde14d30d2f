//! Pods on a node of real parts: etcd, the API server, the controller manager, the scheduler, kubelet, containerd, runc, CNI
//! plugins and a registry, with ocivol installed by helm as a user installs it.
//!
//! ```text
//! e2e run [NAME…]     start a node, run the scenarios whose names contain one of these, end it
//! e2e up | down       start a node with ocivol and keep it; end it
//! e2e shell           a shell on the node that is kept
//! e2e bench           how long pods wait for a model, beside image volumes
//! ```
//! All of it runs in namespaces of its own (`machine`), so that nothing is left behind, whatever fails.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../../support/blocks.rs"]
mod blocks;
mod cluster;
mod machine;
mod node;
#[path = "../../support/noise.rs"]
mod noise;
mod peers;
mod pod;
mod proxy;
mod registry;
mod scenarios;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["run", names @ ..] => machine::run(&[&["scenarios"], names].concat()),
        ["bench"] => machine::run(&["measure"]),
        ["up"] => machine::up(),
        ["down"] => machine::down(),
        ["shell"] => machine::shell(),
        // What the commands above start inside the namespaces.
        ["enter", inside @ ..] => machine::enter(inside),
        ["init", inside @ ..] => machine::init(inside),
        ["scenarios", names @ ..] => runtime().block_on(scenarios::run(names)),
        ["keep"] => runtime().block_on(node::keep()),
        ["measure"] => runtime().block_on(peers::measure()),
        _ => {
            eprintln!("usage: e2e run [NAME…] | up | down | shell | bench");
            ExitCode::from(2)
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads")
}
