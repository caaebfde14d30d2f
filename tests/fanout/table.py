"""The table of what was measured, and whether it is what is promised.

usage: table.py RESULT…
"""

import json
import pathlib
import sys

# How many times as much a node's write may take with the most nodes as with the fewest: it would grow with the nodes if plugins watched
# what all of them write.
TIMES = 1.5
# Bytes of a CachedArtifact, which all nodes get each time that its status is written.
LARGEST = 8000

results = sorted((json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:]), key=lambda it: it["nodes"])


def both(cost):
    return f"{cost['api']:.2f} + {cost['etcd']:.2f}"


print(
    """
Milliseconds of processors, API server + etcd, of a status that is written:

| nodes | a node's, ten artifacts | on a new connection | a node's, one artifact | a CachedArtifact's | its object | nothing, for a second |
|---|---|---|---|---|---|---|"""
)
for it in results:
    written = " | ".join(both(it[key]) for key in ("ten", "ten_fresh", "one", "artifact"))
    print(f"| {it['nodes']:,} | {written} | {it['object']:,} bytes | {both(it['idle'])} |")
print(
    """
A plugin has a connection for each of its two watches, and a third one for what it writes; if it wrote nothing for 90 seconds that is a
new one. Here its watches have connections of their own as well, and eight that are kept are for the writes of all.
"""
)

faults = []
for it in results:
    nodes = f"with {it['nodes']:,} nodes"
    print(f"{nodes}: {it['watches']:,} watches; the object has a status of {it['status']:,} bytes, and managedFields of {it['managed']:,}")
    if it["wrong"] or it["ended"]:
        faults.append(f"{nodes} {it['wrong']} watches did not get what they should, and {it['ended']} ended")
    if it["object"] > LARGEST:
        faults.append(f"{nodes} a CachedArtifact has {it['object']:,} bytes, more than {LARGEST:,}")
few, many = results[0], results[-1]
for key, artifacts in (("ten", "ten artifacts"), ("one", "one artifact")):
    write, before = many[key]["api"], few[key]["api"]
    if write > TIMES * before:
        more = f"{write / before:.1f} times as much as with {few['nodes']:,}"
        faults.append(f"with {many['nodes']:,} nodes a write of {artifacts} takes {more}")
for fault in faults:
    print(fault, file=sys.stderr)
sys.exit(bool(faults))
