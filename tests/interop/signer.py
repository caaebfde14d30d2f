"""A registry's blobs as S3 and others have them: answers each request with a URL that nginx's secure_link module takes for some seconds.
Every third URL has expired already, as one has whose client comes late.
usage: signer.py PORT STORE SECONDS
"""

import base64
import hashlib
import http.server
import itertools
import sys
import time

port, store, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
numbers = itertools.count(1)


class Signer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        digest = self.path.split("/blobs/sha256:")[1]
        # Where docker-registry has it.
        path = f"/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
        number = next(numbers)
        expires = int(time.time()) + (-1 if number % 3 == 0 else seconds)
        signature = hashlib.md5(f"{expires}{path} interop".encode()).digest()
        signed = base64.urlsafe_b64encode(signature).decode().rstrip("=")
        self.send_response(307)
        self.send_header("Location", f"{store}{path}?md5={signed}&expires={expires}&number={number}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Signer).serve_forever()
