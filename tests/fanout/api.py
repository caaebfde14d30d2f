"""The way to the API server: HTTP/1.1 over TLS, as the plugin's, with a connection for each thread."""

import concurrent.futures
import http.client
import json
import ssl
import threading
import time

from objects import sent

ADDRESS, PORT = "10.99.0.1", 6443
# Its certificate is made when it starts, and signed by nobody.
TLS = ssl.create_default_context()
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE
MERGE = "application/merge-patch+json"
# Requests at a time.
THREADS = 8
connections = threading.local()


class Refused(Exception):
    """What an API server does not do."""

    def __init__(self, what, status, answer):
        super().__init__(f"{what}: {status} {answer[:300]}")
        self.status, self.answer = status, answer


def request(method, path, token, body=None, kind="application/json", keep=True):
    """The object in the answer, whose size is noted, over this thread's connection, or over a new one that is not kept."""
    connection = getattr(connections, "own", None) if keep else None
    # The API server closes those that nobody uses for 90 seconds.
    if connection is None or time.monotonic() - connections.used > 60:
        connection = http.client.HTTPSConnection(ADDRESS, PORT, context=TLS, timeout=60)
    if keep:
        connections.own, connections.used = connection, time.monotonic()
    headers = {"Accept": "application/json", "Authorization": f"Bearer {token}"}
    if body is not None:
        headers["Content-Type"] = kind
    connection.request(method, path, None if body is None else sent(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    if not keep:
        connection.close()
    if answer.status not in (200, 201):
        raise Refused(f"{method} {path}", answer.status, text)
    return json.loads(text)


def status(path, token, value, keep=True):
    """Writes a status, as plugins and the controller do. The version that the object has then."""
    written = request("PATCH", f"{path}/status", token, {"status": value}, MERGE, keep)
    return written["metadata"]["resourceVersion"]


def each(items, work):
    """What `work` makes of each, in their order, some at a time."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, items))


def until(what, is_so, seconds=60):
    """Waits until it is so."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise SystemExit(f"not in {seconds} s: {what}")
        time.sleep(0.05)
