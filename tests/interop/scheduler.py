"""What dfdaemon wants of Dragonfly's scheduler to begin with: it is healthy, and takes hosts' announcements. There is no other peer, and
what else it is asked is refused, after which dfdaemon goes to the registry.
usage: scheduler.py ADDRESS
"""

import sys
from concurrent import futures

import grpc

# HealthCheckResponse with SERVING, and an empty message.
ANSWERS = {"/grpc.health.v1.Health/Check": b"\x08\x01", "/scheduler.v2.Scheduler/AnnounceHost": b"", "/scheduler.v2.Scheduler/DeleteHost": b""}


class Scheduler(grpc.GenericRpcHandler):
    def service(self, details):
        answer = ANSWERS.get(details.method)
        print(details.method, flush=True)
        return None if answer is None else grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Scheduler()])
assert server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
