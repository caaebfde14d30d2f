"""What the nodes of the picture do: pods come and go on each, all with models and images of one registry, some of which cannot be had. An
operator collects, mounts by hand, and looks for damage. The order is made of the nodes' names, so each run is much like the last one.

usage: work.py OCIVOL DIRECTORY REGISTRY-PORT LINE SECONDS
"""

import hashlib
import json
import os
import pathlib
import random
import stat
import subprocess
import sys
import threading
import time

import csi
import push

ocivol, directory, port, line, seconds = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
MIB = 1 << 20
PODS = 4  # Of each node, at most.

MODELS = {
    "models/llama": {"llama-1": 24 * MIB, "llama-2": 24 * MIB, "llama-3": 20 * MIB},
    "models/llama-chat": {"llama-1": 24 * MIB, "llama-2": 24 * MIB, "chat": 18 * MIB},
    "models/mistral": {"mistral-1": 36 * MIB, "mistral-2": 30 * MIB},
    "models/whisper": {"whisper": 18 * MIB},
    "models/embed": {"embed": 3 * MIB},
    "private/tuned": {"mistral-1": 36 * MIB, "tuned": 9 * MIB},
    "shared/tokens": {"tokens": MIB // 2},
    "busy/ranker": {"ranker": 9 * MIB},
    "failing/vision": {"vision": 13 * MIB},
    "damaged/old": {"old": 2 * MIB},
    "slow/archive": {"archive": 40 * MIB},
    "slow/notes": {"notes": 14 * MIB},
}
IMAGES = {"images/web": {"base": 400, "web": 90}, "images/tools": {"base": 400, "tools": 30}}
# How often pods want them. Nobody has pushed models/gone, and nobody listens at the last one.
WANTED = {
    "models/llama": 5, "models/llama-chat": 5, "models/mistral": 4, "models/whisper": 3, "models/embed": 3, "private/tuned": 4,
    "shared/tokens": 2, "busy/ranker": 3, "failing/vision": 3, "images/web": 4, "images/tools": 3,
    "damaged/old": 1, "models/gone": 1, "private/denied": 1, "nowhere/model": 1,
}  # fmt: skip


def secret(password):
    return {".dockerconfigjson": json.dumps({"auths": {line: {"username": "alice", "password": password}}})}


def reference_of(name):
    host = line if not name.startswith("nowhere/") else line.split(":")[0] + ":9"
    return f"{host}/{name.replace('/denied', '/tuned')}:v1"


def size(path):
    """Of a file; what else there is, or what a collection just took, has none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


class Node:
    def __init__(self, path):
        self.path, self.name, self.socket = path, path.name, path / "csi.sock"
        registration = path / "kubelet/plugins_registry/csi.ocivol.dev-reg.sock"
        while not registration.exists():
            time.sleep(0.1)
        csi.register(registration)

    def publish(self, pod, name, attempts=1):
        """Publishes, as often as kubelet would while a pod waits; the volume and its target."""
        parent = self.path / "kubelet/pods" / pod / "volumes/kubernetes.io~csi/model"
        parent.mkdir(parents=True, exist_ok=True)
        is_inline = not name.startswith("images/tools")
        attributes = {
            "reference": reference_of(name),
            "csi.storage.k8s.io/pod.name": pod,
            "csi.storage.k8s.io/pod.namespace": "team",
            "csi.storage.k8s.io/pod.uid": pod,
            "csi.storage.k8s.io/serviceAccount.name": "default",
        }
        if is_inline:
            attributes["csi.storage.k8s.io/ephemeral"] = "true"
        secrets = {"private/tuned": secret("wonderland"), "private/denied": secret("looking-glass")}.get(name, {})
        # As kubelet names inline volumes, and a claim's, which has a name of the cluster's.
        volume = f"csi-{hashlib.sha256(pod.encode()).hexdigest()}" if is_inline else f"pvc-{pod}"
        for wait in [2**number for number in range(attempts)]:
            if csi.publish(self.socket, volume, parent / "mount", attributes, secrets, is_inline):
                break
            time.sleep(wait)
        return volume, parent / "mount"

    def pods(self, place):
        """One pod after the other at this place of the node."""
        chance, number = random.Random(f"{self.name}-{place}"), 0
        time.sleep(chance.uniform(2, 6) * (place + 1))
        while True:
            (name,) = chance.choices(list(WANTED), WANTED.values())
            number += 1
            volume = self.publish(f"{self.name}-pod-{place}-{number}", name, attempts=3)
            time.sleep(chance.uniform(4, 16))
            csi.unpublish(self.socket, *volume)
            time.sleep(chance.uniform(0, 3))

    def command(self, *arguments):
        """A command of the operator. One that fails has said why, and `fsck` fails when it finds something."""
        subprocess.run([ocivol, arguments[0], "--root", self.path / "store", *arguments[1:]], stdout=subprocess.DEVNULL, check=False)

    def damage(self):
        """Changes a byte of the largest file of the store, as a bad disk does."""
        largest = max((self.path / "store").rglob("*"), key=size)
        with open(largest, "r+b", buffering=0) as file:
            byte = file.read(1)
            file.seek(0)
            file.write(bytes([byte[0] ^ 1]))


registry = push.Registry(port)
for name, weights in MODELS.items():
    registry.model(name, weights)
for name, layers in IMAGES.items():
    registry.image(name, layers)
nodes = [Node(path) for path in sorted(directory.glob("node-?"))]
first, second, third = nodes
mount = directory / "mount"
mount.mkdir()

# What the operator does, and long pulls, after this part of the time.
PLAN = [
    (0.15, lambda: first.command("mount", f"{line}/models/embed:v1", str(mount))),
    (0.2, lambda: second.publish("slow-1", "slow/notes")),
    (0.4, lambda: first.command("gc")),
    (0.55, lambda: third.damage()),
    (0.58, lambda: third.command("fsck", "--repair")),
    (0.7, lambda: first.command("umount", str(mount))),
    (0.75, lambda: second.command("gc")),
    (0.92, lambda: first.publish("slow-2", "slow/archive")),
    (0.96, lambda: third.publish("slow-3", "slow/archive")),
]


def started(work, *arguments):
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


began = time.monotonic()
pods = [started(node.pods, place) for node in nodes for place in range(PODS)]
for part, work in PLAN:
    time.sleep(max(began + part * seconds - time.monotonic(), 0))
    started(work)
time.sleep(max(began + seconds - time.monotonic(), 0))
# They go on until the plugins end, after this program. One that has ended has said why: its plugin did not answer.
sys.stdout.flush()
os._exit(0 if all(thread.is_alive() for thread in pods) else 1)
