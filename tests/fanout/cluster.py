"""The cluster of so many nodes: its objects, the tokens of its plugins, and what these watch."""

from api import Refused, each, request, status, until
from objects import (
    ARTIFACTS, CONTROLLER, NAMESPACE, OWN, PLUGIN, cached_artifact, node, node_artifacts, node_name, pod, said,
)  # fmt: skip
from watches import Reader, Watch

ADMIN = "admin"
ACCOUNTS = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
# Of Nodes the metadata is watched, and no more.
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"


def token(account, of_pod=None):
    """A token of a service account; of a plugin's pod, as kubelet gets one for it."""
    spec = {"audiences": [], "expirationSeconds": 7200}
    if of_pod:
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": of_pod["name"], "uid": of_pod["uid"]}
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return request("POST", f"{ACCOUNTS}/{account}/token", ADMIN, asked)["status"]["token"]


class Cluster:
    """All nodes, with what their plugins have written so far."""

    def __init__(self, count):
        self.count = count
        self.nodes = each(range(count), lambda number: request("POST", "/api/v1/nodes", ADMIN, node(number))["metadata"])
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        self.pods = each(range(count), lambda number: request("POST", pods, ADMIN, pod(number))["metadata"])
        for name in ARTIFACTS:
            request("POST", f"{OWN}/cachedartifacts", ADMIN, cached_artifact(name))
        self.tokens, self.controller = self.more_tokens(range(count)), token(CONTROLLER)
        until("a plugin is kept from writing what is another's", self.is_held_to_its_own)
        each(range(count), self.make)
        self.steps = [0] * count

    def more_tokens(self, numbers):
        """A token for each of these nodes."""
        return each(numbers, lambda number: token(PLUGIN, self.pods[number]))

    def is_held_to_its_own(self):
        """The policy is there, and the rights."""
        other = node_artifacts(node_name(1), self.nodes[1]["uid"])
        try:
            request("POST", f"{OWN}/nodeartifacts?dryRun=All", self.tokens[0], other)
        except Refused as refused:
            return b"writes its own object only" in refused.answer
        return False

    def make(self, number):
        name = node_name(number)
        request("POST", f"{OWN}/nodeartifacts", self.tokens[number], node_artifacts(name, self.nodes[number]["uid"]))
        status(f"{OWN}/nodeartifacts/{name}", self.tokens[number], said(number, len(ARTIFACTS)))

    def write(self, number, token, artifacts, keep=True):
        """What the plugin of a node writes next of so many artifacts. Nodes are at different places."""
        self.steps[number] += 1
        path = f"{OWN}/nodeartifacts/{node_name(number)}"
        return status(path, token, said(number + self.steps[number], artifacts), keep)

    def watch(self):
        """Opens what all plugins and a controller watch."""
        reader = Reader()

        def version(path):
            return request("GET", f"{path}?limit=1", ADMIN)["metadata"]["resourceVersion"]

        def opened(path, token, since, accept="application/json", only=""):
            # None of them ends while it is measured; those of plugins last five to ten minutes.
            query = f"watch=true&allowWatchBookmarks=true&timeoutSeconds=3600&resourceVersion={since}{only}"
            return reader.add(Watch(f"{path}?{query}", token, accept))

        artifacts, nodes, reports = f"{OWN}/cachedartifacts", "/api/v1/nodes", f"{OWN}/nodeartifacts"
        since = {path: version(path) for path in (artifacts, nodes, reports)}
        numbers = range(self.count)
        self.of_artifacts = each(numbers, lambda number: opened(artifacts, self.tokens[number], since[artifacts]))
        self.of_own_node = each(
            numbers,
            lambda number: opened(
                nodes, self.tokens[number], since[nodes], METADATA, f"&fieldSelector=metadata.name%3D{node_name(number)}"
            ),
        )
        self.of_artifacts.append(opened(artifacts, self.controller, since[artifacts]))
        self.of_nodes = opened(nodes, self.controller, since[nodes], METADATA)
        self.of_reports = opened(reports, self.controller, since[reports])

    def have_ended(self):
        """How many watches have."""
        watches = [*self.of_artifacts, *self.of_own_node, self.of_nodes, self.of_reports]
        return sum(watch.has_ended for watch in watches)
