"""Many watches, read by one thread. Of each event of an object its version is kept: which of them came, and in which order."""

import re
import selectors
import socket
import ssl
import threading

from api import ADDRESS, PORT, TLS

VERSION = re.compile(rb'"resourceVersion":"(\d+)"')


class Watch:
    """A watch on a connection of its own."""

    def __init__(self, path, token, accept="application/json"):
        self.versions, self.has_ended = [], False
        # What came and is not looked at yet: of the answer, and of the lines in it. How much of the chunk is still to come.
        self.raw, self.text, self.left = b"", b"", 0
        self.socket = TLS.wrap_socket(socket.create_connection((ADDRESS, PORT), timeout=60), server_hostname=ADDRESS)
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nAccept: {accept}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.raw:
            piece = self.socket.recv(1 << 16)
            if not piece:
                raise OSError(f"{path}: the answer ends before it begins")
            self.raw += piece
        head, self.raw = self.raw.split(b"\r\n\r\n", 1)
        if b" 200 " not in head.split(b"\r\n")[0] or b"chunked" not in head.lower():
            raise OSError(f"{path}: {head + self.raw!r}")
        self.socket.setblocking(False)
        self.take()

    def read(self):
        """Takes what has come."""
        try:
            while piece := self.socket.recv(1 << 16):
                self.raw += piece
                self.take()
            self.has_ended = True
        except ssl.SSLWantReadError:
            pass
        except OSError:
            self.has_ended = True

    def take(self):
        """Chunks (RFC 9112, 7.1), and the lines in them. A chunk may end within a line."""
        while self.raw:
            if self.left == 0:
                size, found, rest = self.raw.partition(b"\r\n")
                if not found:
                    return
                self.raw, self.left = rest, int(size, 16) + 2  # With the end of its line.
                if self.left == 2:
                    self.has_ended = True
            piece, self.raw = self.raw[: self.left], self.raw[self.left :]
            # Of what comes the end of the chunk's line is not part.
            self.text += piece[: max(self.left - 2, 0)]
            self.left -= len(piece)
            *lines, self.text = self.text.split(b"\n")
            for line in lines:
                self.see(line)

    def see(self, line):
        if line.startswith(b'{"type":"ERROR"'):
            self.has_ended = True
        elif not line.startswith(b'{"type":"BOOKMARK"'):
            self.versions.append(VERSION.search(line)[1].decode())


class Reader(threading.Thread):
    """Reads all that are added."""

    def __init__(self):
        super().__init__(daemon=True)
        self.selector = selectors.DefaultSelector()
        self.start()

    def add(self, watch):
        self.selector.register(watch.socket, selectors.EVENT_READ, watch)
        return watch

    def run(self):
        while True:
            for key, _ in self.selector.select(0.1):
                key.data.read()
                if key.data.has_ended:
                    self.selector.unregister(key.fileobj)
