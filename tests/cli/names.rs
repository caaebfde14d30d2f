//! What names mean: tags that move, several names of one tree, and what goes when a name is removed.

use ocivol::demo::push::Layer;
use serde_json::Value;

use super::commands::{failure, json, model, ocivol, stderr, stdout};
use super::users::node;
use crate::support::{Node, Scripted, isolated};

async fn push(registry: &Scripted, tag: &str, content: &'static str) -> String {
    let layers = [Layer::model_file("weight", "w", content)];
    registry.pusher("m").model(tag, &layers).await.expect("pushed").to_string()
}

fn row<'a>(listed: &'a str, reference: &str) -> &'a str {
    listed
        .lines()
        .find(|line| line.starts_with(&format!("{reference} ")))
        .unwrap_or_else(|| panic!("{listed}"))
}

#[test]
fn regression_to_pull_is_to_get_what_the_tag_is_now() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let reference = registry.reference("m:v1");
        let first = push(&registry, "v1", "one").await;
        assert!(stdout(&ocivol(&node, &registry, &["pull", &reference]).await).starts_with(&first));
        let second = push(&registry, "v1", "two").await;
        // A volume's rule is Kubernetes', and who is not asked is said.
        let place = node.directory.path().join("mnt");
        let mount = ["mount", &reference, place.to_str().expect("text")];
        let output = ocivol(&node, &registry, &mount).await;
        assert!(stdout(&output).starts_with(&first));
        let said = stderr(&output);
        assert!(
            said.starts_with(&format!("v1 was {} ", &first[..19]))
                && said.ends_with(" ago; --pull-policy Always asks again\n"),
            "{said}"
        );
        stdout(&ocivol(&node, &registry, &["umount", mount[2]]).await);
        let inspected = stdout(&ocivol(&node, &registry, &["inspect", &reference]).await);
        assert!(
            inspected.contains(&format!("in store   {} (older); nothing of its content", &first[..19])),
            "{inspected}"
        );
        let output = ocivol(&node, &registry, &["pull", &reference]).await;
        assert!(stdout(&output).starts_with(&second) && stderr(&output).is_empty());
        let inspected = stdout(&ocivol(&node, &registry, &["inspect", &reference]).await);
        assert!(inspected.contains(&format!("in store   {} (this one)", &second[..19])), "{inspected}");
        // Lower case is as good.
        let pull = ["pull", &reference, "--pull-policy", "ifnotpresent"];
        assert!(stderr(&ocivol(&node, &registry, &pull).await).contains("asks again"));

        let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert!(row(&listed, &format!("{reference} (older)")).contains(&first[..19]), "{listed}");
        assert!(row(&listed, &format!("{reference}  ")).contains(&second[..19]), "{listed}");
        assert!(listed.lines().last().is_some_and(|line| line.starts_with("2 trees, ")), "{listed}");
        let listed = json(&ocivol(&node, &registry, &["ls", "--output", "json"]).await);
        let moved: Vec<&Value> =
            listed.as_array().expect("a list").iter().filter(|tree| tree["moved"][0] == reference).collect();
        assert_eq!(moved.len(), 1, "{listed}");
        assert_eq!(moved[0]["digest"], first);
    });
}

#[test]
fn regression_a_tag_that_moves_within_a_second_is_what_it_was_pulled_as_last() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let reference = registry.reference("m:v1");
        let contents = ["one", "two"];
        // It moves there and back, faster than seconds are counted.
        for turn in 0..5 {
            let digest = push(&registry, "v1", contents[turn % 2]).await;
            assert!(stdout(&ocivol(&node, &registry, &["pull", &reference]).await).starts_with(&digest));
            let listed = json(&ocivol(&node, &registry, &["ls", "--output", "json"]).await);
            for tree in listed.as_array().expect("a list") {
                let is_older = tree["moved"][0] == reference;
                assert_eq!(is_older, tree["digest"] != digest, "{turn}: {listed}");
            }
        }
    });
}

#[test]
fn regression_a_name_that_was_removed_does_not_come_back_from_what_was_noted() {
    isolated(async {
        let (registry, reference) = model().await;
        for with_plugin in [false, true] {
            let node = node(&["--plain-http", &registry.host()], with_plugin).await;
            let layers = [
                Layer::model_file("weight", "model.safetensors", crate::support::noise(1, 3 << 20)),
                Layer::model_file("weight.config", "config.json", "{}"),
            ];
            registry.pusher("m").model("v2", &layers).await.expect("pushed");
            let other = registry.reference("m:v2");
            stdout(&ocivol(&node, &registry, &["pull", &reference, &other]).await);
            stdout(&ocivol(&node, &registry, &["rm", &other]).await);
            let place = node.directory.path().canonicalize().expect("a path").join("mnt");
            let never = ["mount", &other, place.to_str().expect("text"), "--pull-policy", "Never"];
            let output = ocivol(&node, &registry, &never).await;
            let said = stderr(&output);
            assert!(said.contains(&format!("{other} is not in this node's store")), "{said}");
            // The other name stays, and the one that went can be pulled again.
            let pull = |reference| ["pull", reference, "--pull-policy", "Never"];
            stdout(&ocivol(&node, &registry, &pull(&reference)).await);
            stdout(&ocivol(&node, &registry, &["pull", &other]).await);
            stdout(&ocivol(&node, &registry, &pull(&other)).await);
        }
    });
}

#[test]
fn all_names_of_a_tree_are_listed_and_a_filter_is_told() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let other = registry.reference("m:v2");
        let layers = [
            Layer::model_file("weight", "model.safetensors", crate::support::noise(1, 3 << 20)),
            Layer::model_file("weight.config", "config.json", "{}"),
        ];
        registry.pusher("m").model("v2", &layers).await.expect("pushed");
        stdout(&ocivol(&node, &registry, &["pull", &reference, &other]).await);
        stdout(&ocivol(&node, &registry, &["pull", &reference, "--include", "*.json"]).await);
        let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert_eq!(listed.lines().filter(|line| line.starts_with(&reference)).count(), 2, "{listed}");
        assert!(row(&listed, &other).contains("  -  "), "{listed}");
        assert!(listed.contains("include *.json"), "{listed}");
        assert!(listed.contains("2 trees, 3.00 MiB on disk, "), "{listed}");

        // A name goes, and the tree with its last one.
        let text = stdout(&ocivol(&node, &registry, &["rm", &other]).await);
        assert_eq!(text, format!("untagged {other}; its tree has other names\n"));
        let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert!(!listed.contains(&other) && listed.contains("2 trees"), "{listed}");
        let text = stdout(&ocivol(&node, &registry, &["rm", &reference]).await);
        assert!(text.starts_with("removed sha256:") && text.contains(" MiB freed"), "{text}");
        let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert!(listed.contains("0 trees, 0 B on disk, "), "{listed}");
        let (code, text) = failure(&ocivol(&node, &registry, &["rm", &reference]).await);
        assert_eq!(
            (code, text),
            (1, format!("ocivol: {reference} is not in this store; `ocivol ls` shows what is\n"))
        );
        // It is pulled again as if it had never been there.
        let pulled = stdout(&ocivol(&node, &registry, &["pull", &reference]).await);
        assert!(pulled.contains("2 files, 3.00 MiB; 3.00 MiB were fetched"), "{pulled}");
    });
}

#[test]
fn what_is_mounted_is_not_removed_whoever_holds_the_store() {
    isolated(async {
        let (registry, reference) = model().await;
        for with_plugin in [false, true] {
            let node = node(&["--plain-http", &registry.host()], with_plugin).await;
            let place = node.directory.path().canonicalize().expect("a path").join("mnt");
            let place = place.to_str().expect("text");
            let mounted =
                json(&ocivol(&node, &registry, &["mount", "--output", "json", &reference, place]).await);
            assert_eq!(mounted["directory"], place);
            let digest = mounted["manifest"].as_str().expect("a digest");
            for name in [reference.as_str(), digest, &digest[..19]] {
                let (code, text) = failure(&ocivol(&node, &registry, &["rm", name]).await);
                assert_eq!(code, 1);
                assert_eq!(
                    text,
                    format!("ocivol: {name} is in use: mounted by {place}; nothing was removed\n")
                );
            }
            let listed = json(&ocivol(&node, &registry, &["ls", "--output", "json"]).await);
            assert_eq!(listed[0]["mounted_by"][0], place);
            let unmounted = json(&ocivol(&node, &registry, &["umount", "--output", "json", place]).await);
            assert_eq!(unmounted["directory"], place);
            let removed = json(&ocivol(&node, &registry, &["rm", "--output", "json", &digest[..19]]).await);
            assert_eq!(removed["removed"][0], digest);
            assert!(removed["freed"].as_u64().is_some_and(|bytes| bytes > 3 << 20), "{removed}");
        }
    });
}

#[test]
fn a_pods_volume_is_listed_by_the_pods_name() {
    isolated(async {
        let (registry, reference) = model().await;
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        node.run().await;
        let pod = ocivol::demo::kubelet::Pod::new("team-a", "llama-0");
        let volume = node.volume_of(&pod, "model");
        node.publish(&volume, &reference, &[]).await.expect("published");
        let listed = stdout(&ocivol(&node, &registry, &["ls"]).await);
        assert!(row(&listed, &reference).ends_with("team-a/llama-0"), "{listed}");
        let (_, text) = failure(&ocivol(&node, &registry, &["rm", &reference]).await);
        assert!(text.contains("mounted by team-a/llama-0; nothing was removed"), "{text}");
    });
}
