"""Pushes models and images into a registry (distribution-spec v1.1, "Push"). What they hold is made of their names: it does not compress, and
is the same each time.
"""

import gzip
import hashlib
import http.client
import io
import json
import random
import tarfile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL = "application/vnd.cncf.model"


def noise(name, size):
    return random.Random(name).randbytes(size)


class Registry:
    def __init__(self, port):
        self.port = port

    def send(self, method, url, body=b"", content_type="application/octet-stream"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, url, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (201, 202):
            raise OSError(f"{method} {url}: {answer.status}")
        return answer.headers

    def blob(self, repository, content, media_type, annotations=None):
        """Pushes it; returns its descriptor."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        place = self.send("POST", f"/v2/{repository}/blobs/uploads/")["Location"]
        place = "/" + place.split("/", 3)[3] if "://" in place else place
        self.send("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", content)
        return {"mediaType": media_type, "digest": digest, "size": len(content), "annotations": annotations or {}}

    def manifest(self, repository, config, layers, more):
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}
        self.send("PUT", f"/v2/{repository}/manifests/v1", json.dumps(manifest).encode(), MANIFEST)

    def model(self, repository, weights):
        """A ModelPack model of these weights: of what name, and how many bytes."""
        config = {"descriptor": {"name": repository}, "config": {}, "modelfs": {"type": "layers", "diffIds": []}}
        config = self.blob(repository, json.dumps(config).encode(), f"{MODEL}.config.v1+json")
        layers = [
            self.blob(repository, noise(name, size), f"{MODEL}.weight.v1.raw", {"org.cncf.model.filepath": f"{name}.safetensors"})
            for name, size in weights.items()
        ]
        self.manifest(repository, config, layers, {"artifactType": f"{MODEL}.manifest.v1+json"})

    def image(self, repository, layers):
        """A container image with a layer for each of these: of what name, and how many files of 16 KiB."""
        archives = [archive(name, files) for name, files in layers.items()]
        diff_ids = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in archives]
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        config = self.blob(repository, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
        kind = "application/vnd.oci.image.layer.v1.tar+gzip"
        packed = [self.blob(repository, gzip.compress(content, 1, mtime=0), kind) for content in archives]
        self.manifest(repository, config, packed, {})


def archive(name, files):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for number in range(files):
            entry = tarfile.TarInfo(f"usr/share/{name}/{number}")
            entry.size, entry.mode = 16 << 10, 0o644
            tar.addfile(entry, io.BytesIO(noise(f"{name}{number}", entry.size)))
    return held.getvalue()
