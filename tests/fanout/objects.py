"""What there is in the cluster, and what plugins and the controller write, as `src/prepull` writes it: NodeArtifacts as `report.rs` and
`board.rs` do, the status of CachedArtifacts as `summary.rs` does.
"""

import hashlib
import json

OWN = "/apis/ocivol.dev/v1alpha1"
NAMESPACE, PLUGIN, CONTROLLER = "ocivol", "ocivol", "ocivol-controller"
ARTIFACTS = [f"model-{number}" for number in range(10)]
GIB = 1 << 30
SINCE = "2026-01-01T12:00:00Z"
# A message is cut there, and so many nodes are named that lack an artifact.
MESSAGE, FAILING = 256, 10


def sent(value):
    """The bytes of a body, as serde_json writes them: keys are sorted, and there is no space between them."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def node_name(number):
    """As long as a label of DNS can be: 63 characters."""
    return f"worker-{number:04}.accelerators.of-a-region-with-a-long-name.internal"


def node(number):
    name = node_name(number)
    labels = {"kubernetes.io/hostname": name, "accelerator": "a100", "topology.kubernetes.io/zone": f"zone-{number % 3}"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def pod(number):
    """That of the plugin: its token says on which node it is."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"ocivol-{number}", "namespace": NAMESPACE},
        "spec": {"nodeName": node_name(number), "serviceAccountName": PLUGIN, "containers": [{"name": "ocivol", "image": "ocivol"}]},
    }


def digest(artifact):
    return f"sha256:{hashlib.sha256(artifact.encode()).hexdigest()}"


def reference(artifact):
    return f"registry.example.com/machine-learning/large-language-models/{artifact}-instruct:v1"


def cached_artifact(name):
    """As `kubectl apply` makes it: with what was applied once more in an annotation."""
    spec = {
        "reference": reference(name),
        "attributes": {"include": "*.safetensors,*.json"},
        "nodeSelector": {"matchLabels": {"accelerator": "a100"}},
        "spreadSeconds": 600,
        "nodeLabel": True,
    }
    applied = {"apiVersion": "ocivol.dev/v1alpha1", "kind": "CachedArtifact", "metadata": {"name": name}, "spec": spec}
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(applied) + "\n"}
    return {**applied, "metadata": {"name": name, "annotations": annotations}}


def node_artifacts(name, uid):
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}
    return {"apiVersion": "ocivol.dev/v1alpha1", "kind": "NodeArtifacts", "metadata": {"name": name, "ownerReferences": [owner]}}


def said(step, count):
    """The status of a node that pulls so many artifacts, two at a time, in steps of ten hundredths. It is another with every step."""
    first, percent = step // 9 % count, 10 + step % 9 * 10
    artifacts = []
    for number, name in enumerate(ARTIFACTS[:count]):
        one = {"name": name, "generation": 1, "lastTransitionTime": SINCE}
        if number < first:
            one |= {"phase": "Ready", "digest": digest(name), "percent": 100, "bytes": 12 * GIB}
        elif number < first + 2:
            one |= {"phase": "Pulling", "percent": percent}
        else:
            one |= {"phase": "Waiting", "reason": "Queued"}
        artifacts.append(one)
    pinned = f"{12 * first}.00 GiB" if first else "0 B"
    return {"ready": first, "pulling": min(2, count - first), "failed": 0, "pinned": pinned, "artifacts": artifacts}


def summed_up(artifact, nodes, step):
    """The largest status: as many nodes are named as can be, each with a message that is cut. It is another with every step."""
    fault = f'{reference(artifact)}: Get "https://registry.example.com/v2/": the certificate is not of an authority that is trusted; '
    message = (fault * 9)[:MESSAGE]
    failing = [{"node": node_name(number), "reason": "Verification", "message": message} for number in range(FAILING)]
    ready = step % (nodes - FAILING)

    def condition(kind, status, reason, words):
        one = {"type": kind, "status": status, "reason": reason, "message": words}
        return {**one, "observedGeneration": 1, "lastTransitionTime": SINCE}

    return {
        "observedGeneration": 1,
        "reference": reference(artifact),
        "digest": digest(artifact),
        "size": "12.00 GiB",
        "nodes": {"desired": nodes, "ready": ready, "pulling": nodes - FAILING - ready, "failed": FAILING},
        "failing": failing,
        "conditions": [
            condition(
                "Ready",
                "False",
                "NotEverywhere",
                f"{ready} of {nodes} nodes have it; of 10 more that are chosen no plugin says something",
            ),
            condition("Resolved", "True", "Resolved", f"it is {digest(artifact)}"),
            condition("Labelled", "True", "Labelled", "nodes that have it have a label"),
        ],
    }
