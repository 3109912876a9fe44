"""grpc.health.v1 by grpcio: `health.py PORT DELAY_MS`.

Says how many calls it has taken, every hundred. SIGTERM drains: GOAWAY, calls under way end, then the process does.
"""

import itertools
import signal
import sys
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Counting(health.HealthServicer):
    """Counts its calls, and takes its time over each."""

    def __init__(self, delay):
        super().__init__()
        self.delay = delay
        # Its `next` is one step of the interpreter, so it needs no lock.
        self.numbers = itertools.count(1)

    def Check(self, request, context):
        number = next(self.numbers)
        if number % 100 == 0:
            print(f"{number} calls\n", end="", flush=True)
        if self.delay:
            time.sleep(self.delay)
        return super().Check(request, context)


def main():
    port, delay = int(sys.argv[1]), int(sys.argv[2]) / 1000
    # Before any thread is made: they inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    servicer = Counting(delay)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    # With it two servers could share a port, and nobody would know whom a call asks.
    options = [("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=options)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    signal.sigwait({signal.SIGTERM})
    server.stop(grace=10).wait()


main()
