"""The line between the nodes and a registry: it is as slow as lines are, asks for tokens, and has faults. How a repository is answered is
said by the first part of its name:

    private/, shared/  only with a token, which alice gets for her password
    busy/              every third request is one too many (429)
    failing/           every third request is an error (503)
    damaged/           a byte of its blobs is wrong
    slow/              a hundredth of the line for each connection

usage: line.py PORT REGISTRY-PORT BYTES-PER-SECOND
"""

import base64
import http.client
import http.server
import itertools
import json
import sys
import threading
import time

port, registry, rate = (int(argument) for argument in sys.argv[1:])
PIECE = 64 << 10
LOGIN = "Basic " + base64.b64encode(b"alice:wonderland").decode()
TOKEN = "a-token-of-alice"
# What it takes to the registry and back.
DISTANCE = 0.015


class Pace:
    """Bytes per second of all who share it."""

    def __init__(self, rate):
        self.rate, self.lock, self.free_at = rate, threading.Lock(), 0.0

    def carry(self, length):
        with self.lock:
            self.free_at = max(time.monotonic(), self.free_at) + length / self.rate
            wait = self.free_at - time.monotonic()
        time.sleep(max(wait, 0))


line = Pace(rate)
requests = {"busy": itertools.count(1), "failing": itertools.count(1)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        time.sleep(DISTANCE)
        if self.path.startswith("/token"):
            return self.token()
        kind = (self.path.split("/") + [""])[2]
        if kind in ("private", "shared") and self.headers["Authorization"] != f"Bearer {TOKEN}":
            repository = self.path.removeprefix("/v2/").rsplit("/", 2)[0]
            realm = f'Bearer realm="http://{self.headers["Host"]}/token",service="line",scope="repository:{repository}:pull"'
            return self.refuse(401, "UNAUTHORIZED", {"WWW-Authenticate": realm})
        if kind == "busy" and next(requests[kind]) % 3 == 0:
            return self.refuse(429, "TOOMANYREQUESTS", {"Retry-After": "1"})
        if kind == "failing" and next(requests[kind]) % 3 == 0:
            return self.refuse(503, "UNAVAILABLE", {})
        self.forward(kind)

    do_HEAD = do_GET

    def token(self):
        login = self.headers["Authorization"]
        if login not in (None, LOGIN):
            return self.refuse(401, "UNAUTHORIZED", {})
        body = json.dumps({"token": TOKEN if login else "a-token-of-nobody", "expires_in": 60}).encode()
        self.begin(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def forward(self, kind):
        """Asks the registry, and hands on what it says."""
        connection = http.client.HTTPConnection("127.0.0.1", registry)
        # What may be said in several lines means the same in one.
        passed = {name: ", ".join(self.headers.get_all(name)) for name in ("Accept", "Range") if name in self.headers}
        connection.request(self.command, self.path, headers=passed)
        answer = connection.getresponse()
        kept = ("content-type", "content-length", "content-range", "docker-content-digest", "accept-ranges")
        self.begin(answer.status, {name: value for name, value in answer.getheaders() if name.lower() in kept})
        own, is_damaged = Pace(rate / 100), kind == "damaged" and "/blobs/" in self.path
        while piece := answer.read(PIECE):
            if is_damaged:
                piece, is_damaged = bytes([piece[0] ^ 1]) + piece[1:], False
            line.carry(len(piece))
            if kind == "slow":
                own.carry(len(piece))
            self.wfile.write(piece)
        connection.close()

    def refuse(self, status, code, headers):
        body = json.dumps({"errors": [{"code": code, "message": "as line.py says"}]}).encode()
        self.begin(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # Whoever asked has enough.

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", port), Handler).serve_forever()
