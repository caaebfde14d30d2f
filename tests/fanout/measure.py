"""Measures what the processors do for so many nodes: a kube-apiserver and an etcd that nobody else uses.

usage: measure.py NODES PID-OF-KUBE-APISERVER PID-OF-ETCD RESULT
"""

import json
import os
import pathlib
import resource
import sys
import time

from api import MERGE, each, request, status, until
from cluster import ADMIN, Cluster
from objects import ARTIFACTS, OWN, node_name, sent, summed_up

# Status writes of nodes over connections that are kept, and over new ones; of CachedArtifacts, in rounds of all of them.
WRITES, FRESH, ROUNDS = 3000, 500, 10
# Seconds in which nothing is done. Each watch gets one bookmark in a minute.
IDLE = 60
TICKS = os.sysconf("SC_CLK_TCK")

count, result = int(sys.argv[1]), sys.argv[4]
pids = {"api": sys.argv[2], "etcd": sys.argv[3]}


def told(words):
    print(f"{count} nodes: {words}", file=sys.stderr, flush=True)


def spent():
    """Milliseconds of processors that each has taken so far, and when."""
    now = {}
    for name, pid in pids.items():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        now[name] = (int(fields[11]) + int(fields[12])) * 1000 / TICKS
    return now, time.monotonic()


def cost(work, divisor, idle=None):
    """What `work` takes, each `divisor`-th of it, without what they take anyhow in its time."""
    before, began = spent()
    work()
    after, ended = spent()
    anyhow = {name: (idle or {}).get(name, 0) * (ended - began) for name in pids}
    return {name: (after[name] - before[name] - anyhow[name]) / divisor for name in pids}


def got_all(watch, versions, since=0):
    """Whether these events came, each once and in their order, and no others."""
    return watch.versions[since:] == versions


# Two sockets for each node, and some.
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
if limit < 2 * count + 200:
    raise SystemExit(f"{count} nodes need {2 * count + 200} open files, and {limit} are allowed")

cluster = Cluster(count)
told("opening the watches")
cluster.watch()
# A plugin writes every ten seconds or less often, and for ten seconds a token that was checked is not checked again. So each write has
# another one.
writes = [(number % count, token) for number, token in enumerate(cluster.more_tokens(n % count for n in range(WRITES)))]
fresh = [(number % count, token) for number, token in enumerate(cluster.more_tokens(n % count for n in range(FRESH)))]
told("looking at what they do when nothing is done")
idle = cost(lambda: time.sleep(IDLE), IDLE)

told("nodes write how far they are")
reported = []


def write(connection):
    def nodes_write():
        since = len(cluster.of_reports.versions)
        pairs = writes if connection == "kept" else fresh
        versions = each(pairs, lambda pair: cluster.write(*pair, keep=connection == "kept"))
        reported.extend(versions)
        until(
            "the controller sees what all nodes wrote",
            lambda: got_all(cluster.of_reports, sorted(versions, key=int), since),
        )

    return nodes_write


of_node = cost(write("kept"), WRITES, idle)
of_node_fresh = cost(write("fresh"), FRESH, idle)
# Of these writes no plugin is told.
told_plugins = sum(bool(watch.versions) for watch in [*cluster.of_artifacts, *cluster.of_own_node])

told("the controller writes what all nodes have")
summaries = []


def controller_writes():
    for step in range(ROUNDS):
        for name in ARTIFACTS:
            value = summed_up(name, count, step)
            summaries.append(status(f"{OWN}/cachedartifacts/{name}", cluster.controller, value))
        until(
            "all plugins see what the controller wrote",
            lambda: all(len(watch.versions) >= len(summaries) or watch.has_ended for watch in cluster.of_artifacts),
        )


of_artifact = cost(controller_writes, ROUNDS * len(ARTIFACTS), idle)

# Each Node is changed once, which its plugin is told, and the controller.
changed = each(
    range(count),
    lambda number: request(
        "PATCH", f"/api/v1/nodes/{node_name(number)}", ADMIN, {"metadata": {"labels": {"changed": "yes"}}}, MERGE
    )["metadata"]["resourceVersion"],
)
until("the controller sees all nodes change", lambda: len(cluster.of_nodes.versions) >= count)
until("plugins see their nodes change", lambda: all(watch.versions or watch.has_ended for watch in cluster.of_own_node))

missed = sum(not got_all(watch, summaries) for watch in cluster.of_artifacts)
missed += sum(not got_all(watch, [version]) for watch, version in zip(cluster.of_own_node, changed))
missed += not got_all(cluster.of_nodes, sorted(changed, key=int))
missed += told_plugins
largest = request("GET", f"{OWN}/cachedartifacts/{ARTIFACTS[0]}", ADMIN)
figures = {
    "nodes": count,
    "idle": idle,
    "node": of_node,
    "node_fresh": of_node_fresh,
    "artifact": of_artifact,
    "object": len(sent(largest)),
    "status": len(sent(largest["status"])),
    "event": max(watch.bytes for watch in cluster.of_artifacts),
    "watches": 2 * count + 3,
    "missed": missed,
    "ended": cluster.have_ended(),
}
pathlib.Path(result).write_text(json.dumps(figures))
told("done")
