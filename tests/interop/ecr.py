"""Amazon ECR's API as far as GetAuthorizationToken, for who signs with the key "interop": a password that is good for twelve hours.
usage: ecr.py PORT PASSWORD
"""

import base64
import http.server
import json
import sys
import time

port, password = int(sys.argv[1]), sys.argv[2]


class Ecr(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        target, signed = self.headers["X-Amz-Target"], self.headers["Authorization"]
        print(target, signed, flush=True)
        if not target.endswith(".GetAuthorizationToken") or not signed.startswith("AWS4-HMAC-SHA256 Credential=interop/"):
            return self.answer(403, {"__type": "AccessDeniedException"})
        token = base64.b64encode(f"AWS:{password}".encode()).decode()
        self.answer(200, {"authorizationData": [{"authorizationToken": token, "expiresAt": time.time() + 43200}]})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", port), Ecr).serve_forever()
