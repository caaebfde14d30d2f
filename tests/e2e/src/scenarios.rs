//! The scenarios, and how they are run.

mod claims;
mod crowds;
mod documents;
mod inline;
mod installing;
mod memory;
mod messages;
mod odd;
mod operate;
mod prepull;
mod registries;
mod restarts;
mod storage;
mod writes;

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::sync::Mutex;

use crate::machine::directory;
use crate::node::{Node, log_of};
use crate::registry::push_ocivol;

/// The node, which most scenarios only look at, and some stop and start.
pub type Shared = Arc<Mutex<Node>>;
type Outcome = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A scenario: what it holds, and how that is shown.
struct Scenario {
    name: &'static str,
    run: fn(Shared) -> Outcome,
}

/// Scenarios of these go on side by side: each has a namespace of its own, and none disturbs the node.
const SIDE_BY_SIDE: usize = 6;

macro_rules! scenarios {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$(Scenario { name: stringify!($name), run: |node| Box::pin($module::$name(node)) }),*]
    };
}

/// In this order, several at a time.
fn peaceful() -> Vec<Scenario> {
    scenarios![
        messages::a_pull_longer_than_kubelets_deadline_shows_progress_and_ends_well,
        inline::an_inline_model_and_an_image_are_mounted_read_only,
        inline::a_pod_with_its_own_users_reads_the_files,
        inline::a_restricted_pod_that_is_not_root_reads_the_files,
        inline::sub_paths_and_read_only_mounts_work_as_kubelet_documents,
        odd::a_directory_pushed_as_a_dot_runs_and_is_sparse,
        writes::every_way_to_write_works_where_it_may,
        writes::an_inline_volume_that_is_not_read_only_is_refused,
        writes::no_container_can_change_an_inline_volume,
        writes::no_container_can_change_a_claim_whatever_it_says,
        claims::a_claim_is_shared_by_pods_that_say_read_only_and_that_do_not,
        messages::events_say_what_the_readme_says,
        registries::the_sample_of_an_admission_policy_refuses_pods,
    ]
}

/// One after the other: each stops something, or measures.
fn disruptive() -> Vec<Scenario> {
    scenarios![
        inline::a_model_is_in_memory_when_its_pod_starts,
        memory::a_cached_model_is_read_into_memory_while_its_engine_starts,
        restarts::kubelets_restart_disturbs_no_pod_and_asks_no_registry,
        restarts::volumes_outlive_a_plugin_that_is_killed_and_one_that_is_upgraded,
        restarts::pods_that_go_while_no_plugin_runs_are_cleaned_up_afterwards,
        restarts::a_node_that_was_rebooted_starts_its_pods_without_a_download,
        registries::what_the_node_and_the_cluster_have_pulls_what_it_may_and_nothing_else,
        messages::a_pod_is_told_of_its_pull_and_of_what_its_registry_warns,
        installing::what_helms_notes_say_works_in_its_order,
        installing::a_labelled_node_has_the_daemon_set_of_its_label_alone,
        operate::an_operator_sees_digests_status_and_metrics,
        storage::claims_of_a_class_get_volumes_that_stay_what_they_were,
        storage::kubernetes_own_tests_of_storage_pass,
        crowds::sixty_pods_at_once_share_every_download,
        crowds::a_node_at_its_watermark_runs_pod_after_pod_without_disk_pressure,
        // After those that need what earlier pods have left: these have it collected.
        prepull::an_artifact_is_on_the_node_before_its_pod,
        prepull::a_plugin_writes_the_object_of_its_own_node_alone,
        prepull::a_node_shows_what_it_has_and_loses_its_startup_taint,
        restarts::uninstalling_leaves_nothing,
        documents::the_first_volume_of_the_readme_is_what_a_new_cluster_shows,
    ]
}

/// Starts a node, installs ocivol, runs the scenarios whose names contain one of `names`, and says how long each took.
pub async fn run(names: &[&str]) -> ExitCode {
    let wanted =
        |scenario: &Scenario| names.is_empty() || names.iter().any(|name| scenario.name.contains(name));
    let began = Instant::now();
    let node = Node::start().await;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("the node is ready after {:.1?}, on Linux {}", began.elapsed(), kernel.trim());
    push_ocivol("0.1.0", |_| {}).await;
    node.install(&[]).await;
    println!("ocivol is installed after {:.1?}\n", began.elapsed());
    let node = Arc::new(Mutex::new(node));
    let peaceful = peaceful().into_iter().filter(wanted);
    let mut results: Vec<(&str, Duration, bool)> = futures_util::stream::iter(peaceful)
        .map(|scenario| show(scenario, Arc::clone(&node)))
        .buffer_unordered(SIDE_BY_SIDE)
        .collect()
        .await;
    for scenario in disruptive().into_iter().filter(wanted) {
        results.push(show(scenario, Arc::clone(&node)).await);
    }
    let failed = results.iter().filter(|(.., good)| !good).count();
    println!("\ne2e: {} passed, {failed} failed, in {:.0?}", results.len() - failed, began.elapsed());
    if failed > 0 {
        keep_logs();
    }
    if failed == 0 && !results.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn show(scenario: Scenario, node: Shared) -> (&'static str, Duration, bool) {
    let began = Instant::now();
    let result = tokio::spawn((scenario.run)(node)).await;
    let took = began.elapsed();
    let word = if result.is_ok() { "ok" } else { "FAILED" };
    println!("{:>7.1} s  {word:6}  {}", took.as_secs_f64(), scenario.name);
    (scenario.name, took, result.is_ok())
}

/// The logs of pods beside those of the daemons: the machine's disk is thrown away.
fn keep_logs() {
    for line in fs::read_to_string(log_of("kubelet")).unwrap_or_default().lines().rev().take(3) {
        println!("kubelet: {line}");
    }
    println!("logs: {} and {}", directory().join("logs").display(), directory().join("log/pods").display());
}
