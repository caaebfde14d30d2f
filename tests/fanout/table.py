"""The table of what was measured, and whether it is what ocivol promises.

usage: table.py RESULT…
"""

import json
import pathlib
import sys

# Milliseconds of the API server's processors for a node's write, and how much more that may be with the most nodes than with the fewest.
MOST, TIMES_MORE = 2, 2
# Bytes of a CachedArtifact, which every node sees again and again.
LARGEST = 8000

results = sorted((json.loads(pathlib.Path(path).read_text()) for path in sys.argv[1:]), key=lambda it: it["nodes"])
print(
    """
Milliseconds of processors, for API server + etcd. Each plugin has two connections, as HTTP/1.1 has it, one for each watch, and a
third one for what it writes. Here eight are kept for the writes of all; "new" is a write that makes its own.

| nodes | a node's status | the same, new connection | a CachedArtifact's status | nothing, each second | CachedArtifact |
|---|---|---|---|---|---|"""
)


def both(cost):
    return f"{cost['api']:.2f} + {cost['etcd']:.2f}"


for it in results:
    costs = " | ".join(both(it[key]) for key in ("node", "node_fresh", "artifact", "idle"))
    print(f"| {it['nodes']:,} | {costs} | {it['object']:,} bytes |")
print()

faults = []
for it in results:
    nodes = f"with {it['nodes']:,} nodes"
    print(f"{nodes}: {it['watches']:,} watches, {it['ended']} ended; the status of the CachedArtifact has {it['status']:,} bytes")
    if it["missed"] or it["ended"]:
        faults.append(f"{nodes} {it['missed']} watches did not get what they should, and {it['ended']} ended")
    if it["object"] > LARGEST:
        faults.append(f"{nodes} a CachedArtifact has {it['object']:,} bytes, more than {LARGEST:,}")
few, many = results[0], results[-1]
if many["node"]["api"] > MOST:
    faults.append(f"with {many['nodes']:,} nodes a write takes {many['node']['api']:.2f} ms, more than {MOST}")
if many["node"]["api"] > TIMES_MORE * few["node"]["api"]:
    faults.append(f"a write takes more than {TIMES_MORE} times as much with {many['nodes']:,} nodes as with {few['nodes']:,}")
for fault in faults:
    print(fault, file=sys.stderr)
sys.exit(bool(faults))
