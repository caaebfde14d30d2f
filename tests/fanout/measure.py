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

# Status writes of nodes, some of them over connections of their own; and of CachedArtifacts, in rounds of all of them.
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


def by_age(versions):
    return sorted(versions, key=int)


def cost_of_nodes_writes(writes, artifacts, keep=True):
    """Each by the next node, with a token that was not used before: for ten seconds a token that was checked is not checked again, and a
    plugin writes every ten seconds or less often. Of all of them the controller is told, in their order, and of nothing else.
    """
    numbers = [number % count for number in range(writes)]
    pairs = list(zip(numbers, cluster.more_tokens(numbers)))
    since = len(cluster.of_reports.versions)

    def work():
        versions = by_age(each(pairs, lambda pair: cluster.write(*pair, artifacts, keep)))
        until("the controller sees what nodes wrote", lambda: cluster.of_reports.versions[since:] == versions)

    return cost(work, writes, idle)


def controller_writes():
    """One status after the other, and so again when all plugins have seen them."""
    for step in range(ROUNDS):
        for name in ARTIFACTS:
            value = summed_up(name, count, step)
            summaries.append(status(f"{OWN}/cachedartifacts/{name}", cluster.controller, value))
        until(
            "all plugins see what the controller wrote",
            lambda: all(len(watch.versions) >= len(summaries) or watch.has_ended for watch in cluster.of_artifacts),
        )


def change(number):
    """Changes a Node, of which its plugin is told, and the controller."""
    changed = request("PATCH", f"/api/v1/nodes/{node_name(number)}", ADMIN, {"metadata": {"labels": {"changed": "yes"}}}, MERGE)
    return changed["metadata"]["resourceVersion"]


# Two sockets for each node, and some.
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
if limit < 2 * count + 200:
    raise SystemExit(f"{count} nodes need {2 * count + 200} open files, and {limit} are allowed")

told("making them")
cluster = Cluster(count)
cluster.watch()
told("looking at what is done when nothing happens")
idle = cost(lambda: time.sleep(IDLE), IDLE)

told("they write how far they are")
ten = cost_of_nodes_writes(WRITES, len(ARTIFACTS))
ten_fresh = cost_of_nodes_writes(FRESH, len(ARTIFACTS), keep=False)
cost_of_nodes_writes(count, 1)  # The others go.
one = cost_of_nodes_writes(WRITES, 1)
# Of nothing of this plugins are told.
told_of_others = sum(bool(watch.versions) for watch in [*cluster.of_artifacts, *cluster.of_own_node])

told("the controller writes what all of them have")
summaries = []
artifact = cost(controller_writes, ROUNDS * len(ARTIFACTS), idle)

changed = each(range(count), change)
until("the controller sees Nodes change", lambda: len(cluster.of_nodes.versions) >= count)
until("plugins see their Nodes change", lambda: all(watch.versions or watch.has_ended for watch in cluster.of_own_node))

wrong = told_of_others
wrong += sum(watch.versions != summaries for watch in cluster.of_artifacts)
wrong += sum(watch.versions != [version] for watch, version in zip(cluster.of_own_node, changed))
wrong += cluster.of_nodes.versions != by_age(changed)
largest = request("GET", f"{OWN}/cachedartifacts/{ARTIFACTS[0]}", ADMIN)
figures = {
    "nodes": count,
    "idle": idle,
    "ten": ten,
    "ten_fresh": ten_fresh,
    "one": one,
    "artifact": artifact,
    "object": len(sent(largest)),
    "status": len(sent(largest["status"])),
    "managed": len(sent(largest["metadata"]["managedFields"])),
    "watches": 2 * count + 3,
    "wrong": wrong,
    "ended": cluster.have_ended(),
}
pathlib.Path(result).write_text(json.dumps(figures))
