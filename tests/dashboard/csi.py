"""kubelet's part over a unix socket, with nothing but Python: registers a plugin, publishes and unpublishes. A call is one stream of HTTP/2
(RFC 9113) on a connection of its own, as kubelet makes it, and its messages are fields of protobuf (proto/csi/v1/csi.proto).
"""

import socket
import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM = ACK = 1
END_HEADERS = 4
# AccessMode: what kubelet says of inline volumes, and of claims with ReadOnlyMany.
SINGLE_NODE_WRITER, MULTI_NODE_READER_ONLY = 1, 3


def field(number, content):
    """A field of a message: text, a message, or a small number."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    content = content.encode() if isinstance(content, str) else content
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def fields_of(number, pairs):
    return b"".join(field(number, field(1, key) + field(2, value)) for key, value in pairs.items())


def frame(kind, flags, stream, content=b""):
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def literal(name, value):
    """A field line that is not indexed, and not compressed (RFC 7541, 6.2.2)."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


def call(path, method, message, seconds):
    """Calls `method`; whether it was answered with a message, as calls are that end well. Why one did not is in the plugin's log."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": f"{seconds}S",
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds + 5)
        connection.connect(str(path))
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0)
            + frame(HEADERS, END_HEADERS, 1, b"".join(literal(*pair) for pair in headers.items()))
            + frame(DATA, END_STREAM, 1, b"\0" + struct.pack(">I", len(message)) + message)
        )
        incoming, has_message = connection.makefile("rb"), False
        while head := incoming.read(9):
            length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            content = incoming.read(length)
            if kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(frame(kind, ACK, 0, content if kind == PING else b""))
            has_message |= kind == DATA
            if kind in (RST_STREAM, GOAWAY) or kind in (DATA, HEADERS) and flags & END_STREAM:
                break
        return has_message


def register(path):
    """What kubelet does with a registration socket; fails when the plugin does not answer."""
    service = "/pluginregistration.Registration/"
    for method, message in (("GetInfo", b""), ("NotifyRegistrationStatus", field(1, 1))):
        if not call(path, service + method, message, 5):
            raise OSError(f"{path}: {method} failed")


def publish(path, volume, target, attributes, secrets, is_inline):
    """Whether the volume is mounted; a pull goes on when the deadline of a call is over, as kubelet's is after two minutes."""
    mode = SINGLE_NODE_WRITER if is_inline else MULTI_NODE_READER_ONLY
    message = field(1, volume) + field(4, str(target)) + field(5, field(2, b"") + field(3, field(1, mode))) + field(6, 1)
    message += fields_of(7, secrets) + fields_of(8, attributes)
    return call(path, "/csi.v1.Node/NodePublishVolume", message, 120)


def unpublish(path, volume, target):
    return call(path, "/csi.v1.Node/NodeUnpublishVolume", field(1, volume) + field(2, str(target)), 120)
