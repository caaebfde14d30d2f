//! `ocivol status`

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanDuration};

use crate::cli::args::Common;
use crate::cli::context::{Pulls, volumes};
use crate::cli::output::{self, counted};
use crate::control::client;
use crate::control::request::{ControlRequest, Reply};
use crate::control::status::Status;
use crate::failure::{Failure, one_line};
use crate::volume::status::PullStatus;

/// Shows what the plugin does that holds the store. Its exit status says whether the plugin is ready.
///
/// # Errors
/// When no plugin holds it; whatever failed.
pub async fn run(common: &Common) -> Result<ExitCode, Failure> {
    let volumes = volumes(common, Pulls::None)?;
    match client::run(&volumes, ControlRequest::Status, |_| {}).await? {
        Reply::Status(status) => {
            output::result(common, &status, || text(&status));
            Ok(if status.about.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        other => Err(Failure::internal(&format!("unexpected answer: {other:?}"))),
    }
}

fn text(status: &Status) -> String {
    let (about, store) = (&status.about, &status.store);
    let ready = if about.ready { "ready" } else { "not ready" };
    let mut lines = vec![format!("ocivol {}, {} on {}: {ready}", about.version, about.driver, about.node)];
    let mut rows: Vec<[String; 2]> =
        about.checks.iter().map(|check| [check.name.clone(), one_line(&check.message)]).collect();
    let api = if about.uses_api_server { "used" } else { "not used" };
    rows.push(["API server".to_owned(), api.to_owned()]);
    rows.push([
        "disk".to_owned(),
        format!(
            "{} used of {} that may be, {} free",
            BinaryBytes(store.used.bytes),
            BinaryBytes(store.limit.bytes),
            BinaryBytes(store.free.bytes)
        ),
    ]);
    rows.push([
        "content".to_owned(),
        format!(
            "{}, {} and {}; {} could be collected, {} pinned",
            counted(store.trees, "tree"),
            counted(store.layers, "layer"),
            counted(store.blobs, "blob"),
            BinaryBytes(store.evictable.bytes),
            BinaryBytes(store.pinned.bytes)
        ),
    ]);
    rows.push([
        "volumes".to_owned(),
        format!(
            "{}: {} inline, {} of claims, {} by commands",
            store.volumes(),
            store.inline_volumes,
            store.persistent_volumes,
            store.command_volumes
        ),
    ]);
    rows.push(["pulls".to_owned(), status.pulls.len().to_string()]);
    lines.push(output::table(&rows));
    if !status.pulls.is_empty() {
        let head = ["REFERENCE", "FOR", "DONE", "RATE", "TIME"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head).chain(status.pulls.iter().map(row)).collect();
        lines.push(String::new());
        lines.push(output::table(&rows));
    }
    lines.join("\n")
}

fn row(pull: &PullStatus) -> [String; 5] {
    let waiting = match pull.pods.as_slice() {
        [] => pull.namespace.clone(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first} +{}", more.len()),
    };
    let done = match pull.total {
        0 => "reading the manifest".to_owned(),
        total => format!("{}% of {}", pull.percent, BinaryBytes(total)),
    };
    [
        one_line(&pull.reference),
        waiting,
        done,
        format!("{}/s", BinaryBytes(pull.bytes_per_second)),
        HumanDuration(Duration::from_secs(pull.seconds)).to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{About, Check};
    use crate::store::space::amount::Amount;
    use crate::volume::census::Census;

    #[test]
    fn a_person_sees_what_is_wrong_and_who_waits_for_what() {
        let check = |name: &str, ok| Check { name: name.into(), ok, message: format!("it is {ok}") };
        let pull = PullStatus {
            reference: "r.example/m:v1".into(),
            namespace: "shop".into(),
            pods: vec!["shop/a".into(), "shop/b".into()],
            total: 140 << 30,
            done: 57 << 30,
            percent: 40,
            fetched: 57 << 30,
            bytes_per_second: 812 << 20,
            seconds: 97,
        };
        let early = PullStatus { pods: Vec::new(), total: 0, ..pull.clone() };
        let status = Status {
            about: About {
                version: "0.1.0".into(),
                driver: "csi.ocivol.dev".into(),
                node: "node-1".into(),
                ready: false,
                checks: vec![check("registered", true), check("store", false)],
                uses_api_server: false,
            },
            store: Census {
                used: Amount::bytes(60 << 30),
                limit: Amount::bytes(85 << 30),
                free: Amount::bytes(40 << 30),
                trees: 1,
                persistent_volumes: 2,
                ..Census::default()
            },
            pulls: vec![pull, early],
        };
        let expected = "\
ocivol 0.1.0, csi.ocivol.dev on node-1: not ready
registered  it is true
store       it is false
API server  not used
disk        60.00 GiB used of 85.00 GiB that may be, 40.00 GiB free
content     1 tree, 0 layers and 0 blobs; 0 B could be collected, 0 B pinned
volumes     2: 0 inline, 2 of claims, 0 by commands
pulls       2

REFERENCE       FOR        DONE                  RATE          TIME
r.example/m:v1  shop/a +1  40% of 140.00 GiB     812.00 MiB/s  2 minutes
r.example/m:v1  shop       reading the manifest  812.00 MiB/s  2 minutes";
        assert_eq!(text(&status), expected);
    }
}
