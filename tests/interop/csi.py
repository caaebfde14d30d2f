"""kubelet's part: asks a CSI node plugin to publish a reference as an inline volume of a pod, or to take it away.
usage: csi.py SOCKET publish|unpublish TARGET [REFERENCE]
"""

import sys

import grpc


def field(number, content):
    """A field of a protobuf message: text, a message, or a number."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    content = content.encode() if isinstance(content, str) else content
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


socket, what, target = sys.argv[1:4]
# proto/csi/v1/csi.proto: NodePublishVolumeRequest and NodeUnpublishVolumeRequest.
if what == "publish":
    method = "NodePublishVolume"
    # To mount, SINGLE_NODE_READER_ONLY.
    capability = field(2, b"") + field(3, field(1, 2))
    context = {
        "reference": sys.argv[4],
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "pod",
        "csi.storage.k8s.io/pod.namespace": "team",
        "csi.storage.k8s.io/pod.uid": "11111111-2222-3333-4444-555555555555",
        "csi.storage.k8s.io/serviceAccount.name": "default",
    }
    request = field(1, "csi-volume") + field(4, target) + field(5, capability) + field(6, 1)
    request += b"".join(field(8, field(1, key) + field(2, value)) for key, value in context.items())
else:
    method = "NodeUnpublishVolume"
    request = field(1, "csi-volume") + field(2, target)
with grpc.insecure_channel(f"unix:{socket}") as channel:
    try:
        channel.unary_unary(f"/csi.v1.Node/{method}")(request, timeout=100)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
