//! Many pods at once.

use serde_json::json;

use super::Shared;
use super::restarts::run_many;
use crate::registry::{fetched, push_model};

pub async fn sixty_pods_at_once_share_every_download(node: Shared) {
    let node = node.lock().await;
    let pods = node.cluster.namespace("crowd", json!({})).await;
    let size = 8 << 20;
    let mut references = Vec::new();
    for number in 0..12_u8 {
        references.push(push_model(&format!("crowd/model-{number}"), "v1", vec![number; size]).await);
    }
    run_many(&pods, 60, &references).await;
    let weights: Vec<u64> = fetched("crowd/").into_values().filter(|bytes| *bytes >= size as u64).collect();
    assert_eq!(weights, vec![size as u64; 12], "a blob was fetched more than once, or in part");
    pods.clear().await;
}
