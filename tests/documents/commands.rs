//! Every command that a document shows is run and compared by a test, or is in a list here with the reason why it is not.

use std::collections::BTreeSet;

use super::sessions::SESSIONS;
use crate::support::blocks::commands;
use crate::support::named_tests::root;

/// Run by `make e2e`: documents and headings, which `tests/e2e/src/scenarios/documents.rs` has as well.
const ON_A_NODE: [(&str, &str); 2] = [("README.md", "A first volume"), ("docs/operations.md", "Uninstall")];

const OTHER_TOOLS: &str =
    "another project's tool; make interop pushes with it, and what it pushed is in tests/fixtures";
const FILES: &str = "tests/formats/documented.rs compares the files with those of the volume that the PodSpec above it mounts";
const FIRST_VOLUME: &str = "the README's first volume has it, which make e2e types";
const CLUSTER: &str = "what it prints is an example of a cluster in use";
const VERIFIED: &str = "make release-dry types it, and compares what it prints";
const TARGET: &str = "a target of the Makefile, which .ci/run or a person runs";

/// What is not run: the document, what the command begins with, and why.
const NOT_RUN: [(&str, &str, &str); 61] = [
    ("README.md", "git clone ", "the repository is here already"),
    ("README.md", "make ", TARGET),
    ("README.md", "kubectl create secret docker-registry regcred ", "needs an account at a registry"),
    ("README.md", "kubectl apply -f manifests/examples/model-inline.yaml", "needs a GPU"),
    ("CONTRIBUTING.md", "git clone ", "the repository is here already"),
    ("CONTRIBUTING.md", "make ", TARGET),
    ("CONTRIBUTING.md", "cargo test ", "runs tests"),
    ("CONTRIBUTING.md", "sudo ", "runs tests"),
    ("docs/benchmarks.md", "make bench", TARGET),
    ("docs/benchmarks.md", "make docs", TARGET),
    ("docs/benchmarks.md", "ROUNDS=", TARGET),
    ("docs/benchmarks.md", "HELD=", TARGET),
    ("docs/performance.md", "make ", TARGET),
    ("docs/performance.md", "perf record ", "another project's tool, and what it says is of one machine"),
    ("docs/performance.md", "perf report ", "another project's tool, and what it says is of one machine"),
    ("docs/layouts.md", "cd ", FILES),
    ("docs/layouts.md", "buildah push ", OTHER_TOOLS),
    ("docs/layouts.md", "tkn ", OTHER_TOOLS),
    ("docs/layouts.md", "modelpack ", OTHER_TOOLS),
    ("docs/layouts.md", "oras ", OTHER_TOOLS),
    ("docs/layouts.md", "helm package ", OTHER_TOOLS),
    ("docs/layouts.md", "flux ", OTHER_TOOLS),
    ("docs/layouts.md", "cosign ", OTHER_TOOLS),
    (
        "docs/layouts.md",
        "kit ",
        "no package registry at hand has it; docs/layouts.md says so below What was tried",
    ),
    ("docs/layouts.md", "docker model ", "needs Docker; docs/layouts.md says so below What was tried"),
    (
        "docs/layouts.md",
        "ollama ",
        "needs Ollama's own registry; docs/layouts.md says so below What was tried",
    ),
    ("docs/operations.md", "make image", FIRST_VOLUME),
    ("docs/operations.md", "skopeo copy ", FIRST_VOLUME),
    ("docs/operations.md", "kubectl create namespace ocivol", FIRST_VOLUME),
    ("docs/operations.md", "kubectl label namespace ocivol ", FIRST_VOLUME),
    (
        "docs/operations.md",
        "helm install ocivol charts/ocivol --namespace storage",
        "make chart-real does it: an installation in another namespace is refused, and says how it is done",
    ),
    ("docs/operations.md", "helm install ocivol ", FIRST_VOLUME),
    ("docs/operations.md", "kubectl -n ocivol rollout status ", FIRST_VOLUME),
    ("docs/operations.md", "kubectl get csidriver ", CLUSTER),
    (
        "docs/operations.md",
        "kubectl get pods,pv -A ",
        "helm's notes have it, which make chart-real types with users of each kind",
    ),
    (
        "docs/operations.md",
        "kubectl apply -f manifests/install.yaml",
        "make check compares it with the chart that make e2e installs",
    ),
    (
        "docs/operations.md",
        "kubectl get pv -o custom-columns='CLAIM:.spec.claimRef.name,REFERENCE",
        "make e2e looks at it: claims_of_a_class_get_volumes_that_stay_what_they_were",
    ),
    ("docs/operations.md", "kubectl create secret docker-registry ", "needs an account at a registry"),
    (
        "docs/operations.md",
        "kubectl describe pod llama-0",
        "make e2e compares such events: a_pod_is_told_of_its_pull_and_of_what_its_registry_warns",
    ),
    (
        "docs/operations.md",
        "kubectl -n ocivol exec ",
        "tests/store/collection.rs and tests/cli/stores.rs compare what gc and ls print",
    ),
    (
        "docs/operations.md",
        "kubectl get cachedartifacts",
        "tests/publish/prepull.rs compares the status that it shows",
    ),
    (
        "docs/operations.md",
        "kubectl get nodes --label-columns ",
        "make e2e looks at the label: a_node_shows_what_it_has_and_loses_its_startup_taint",
    ),
    (
        "docs/operations.md",
        "kubectl get nodeartifacts",
        "make e2e shows such objects: an_artifact_is_on_the_node_before_its_pod",
    ),
    ("docs/operations.md", "kubectl -n ocivol get pods ", CLUSTER),
    (
        "docs/operations.md",
        "helm test ocivol ",
        "helm's notes have it, which make e2e types: what_helms_notes_say_works_in_its_order",
    ),
    ("docs/operations.md", "kubectl -n ocivol logs ", CLUSTER),
    (
        "docs/platforms.md",
        "kubectl label node ",
        "make e2e labels such a node: a_labelled_node_has_the_daemon_set_of_its_label_alone",
    ),
    (
        "docs/registries.md",
        "cat /etc/containerd/",
        "it shows a file; tests/registry/mirrors.rs mounts through such files",
    ),
    ("docs/registries.md", "helm upgrade ocivol ", "needs a credential provider; make interop runs one"),
    ("docs/registries.md", "kubectl -n team-a create secret ", "needs an account at a registry"),
    ("docs/releasing.md", "cosign ", VERIFIED),
    ("docs/releasing.md", "sha256sum --ignore-missing --check SHA256SUMS", VERIFIED),
    ("docs/releasing.md", "helm template ", VERIFIED),
    ("docs/releasing.md", "ocivol inspect ", VERIFIED),
    ("docs/releasing.md", "oras pull ", VERIFIED),
    ("docs/releasing.md", "make ", TARGET),
    ("docs/releasing.md", "git checkout v0.1.0", "there is no such tag yet"),
    (
        "docs/releasing.md",
        "diff target/release-files/SHA256SUMS",
        "needs a release to compare with; make release-dry makes the files twice and compares them",
    ),
    ("docs/tested.md", "make c", "it is the test"),
    ("docs/tested.md", "make e2e", "it is the test"),
    ("docs/tested.md", "make interop", "it is the test"),
];

/// The documents that people read, as paths in the repository.
fn documents() -> Vec<String> {
    let mut found: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(str::to_owned).into();
    for entry in std::fs::read_dir(root().join("docs")).expect("docs").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            found.push(format!("docs/{name}"));
        }
    }
    found.sort();
    found
}

#[test]
fn every_command_is_run_or_says_why_not() {
    let (mut neither, mut unused) = (Vec::new(), (0..NOT_RUN.len()).collect::<BTreeSet<_>>());
    let mut run = 0;
    for document in documents() {
        let text = std::fs::read_to_string(root().join(&document)).expect("a document");
        for shown in commands(&text) {
            let place = (document.as_str(), shown.heading.as_str());
            if SESSIONS.contains(&place) || ON_A_NODE.contains(&place) {
                run += 1;
                continue;
            }
            let entry = NOT_RUN
                .iter()
                .position(|(known, start, _)| *known == document && shown.words.starts_with(start));
            match entry {
                Some(number) => drop(unused.remove(&number)),
                None => neither.push(format!("{document}, {}: $ {}", shown.heading, shown.words)),
            }
        }
    }
    assert!(run >= 30, "only {run} commands are run");
    assert!(neither.is_empty(), "nothing runs these, and no reason is given: {neither:#?}");
    let unused: Vec<_> = unused.into_iter().map(|number| NOT_RUN[number]).collect();
    assert!(unused.is_empty(), "no document shows these any more: {unused:#?}");
}

#[test]
fn commands_are_in_blocks_and_begin_with_a_prompt() {
    let mut wrong = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(root().join(&document)).expect("a document");
        let (mut is_block, mut language) = (false, "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("```") {
                (is_block, language) = (!is_block, rest);
                continue;
            }
            let starts = ["make ", "ocivol ", "kubectl ", "helm ", "cargo ", "curl "];
            let bare = |line: &str| starts.iter().any(|start| line.starts_with(start));
            let is_indented = !is_block && line.strip_prefix("    ").is_some_and(bare);
            let is_bare = is_block && ["sh", "console", "bash"].contains(&language) && bare(line);
            if is_indented || is_bare {
                wrong.push(format!("{document}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "commands without a prompt, or not in a block: {wrong:#?}");
}

#[test]
fn what_make_e2e_types_is_what_this_list_says() {
    let scenario = include_str!("../e2e/src/scenarios/documents.rs");
    for (document, heading) in ON_A_NODE {
        assert!(scenario.contains(&format!("(\"{document}\", \"{heading}\")")), "{document}, {heading}");
    }
}
