//! What a volume shows, as text that a test can write down.

use std::path::Path;

use super::Node;
use super::snapshot::{Node as File, snapshot};

/// A reference, attributes, and what the volume shows.
pub type Case<'a> = (String, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// A directory: `path=content` or `path (bytes)`, `path->target`, and directories that are empty.
pub fn listing(root: &Path) -> Vec<String> {
    let nodes = snapshot(root);
    let describe = |(name, node): (&String, &File)| {
        let below = format!("{name}/");
        match node.kind {
            'd' if name.is_empty() || nodes.keys().any(|other| other.starts_with(&below)) => None,
            'd' => Some(below),
            'l' => Some(format!("{name}->{}", node.content)),
            _ => {
                let content = std::fs::read(root.join(name)).expect("content");
                let text = String::from_utf8(content.clone()).ok().filter(|text| text.len() <= 24);
                let text = text.map(|text| text.trim_end().to_owned()).filter(|text| !text.contains('\n'));
                Some(match text {
                    Some(text) => format!("{name}={text}"),
                    None => format!("{name} ({})", content.len()),
                })
            }
        }
    };
    nodes.iter().filter_map(describe).collect()
}

/// Publishes each case, compares what the volume shows, and unpublishes it.
pub async fn assert_shown(node: &Node, cases: &[Case<'_>]) {
    for (number, (reference, attributes, expected)) in cases.iter().enumerate() {
        let volume = node.volume(&format!("pod-{number}"));
        let what = format!("{reference} {attributes:?}");
        let published = node.publish(&volume, reference, attributes).await;
        published.unwrap_or_else(|status| panic!("{what}: {status}"));
        assert_eq!(listing(&volume.target), *expected, "{what}");
        node.kubelet.unpublish(&volume).await.expect(reference);
    }
}
