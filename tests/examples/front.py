"""A gRPC server before a real one, which does to each call what a test says.

Calls without such an order go to the real server.
"""

import dataclasses
import threading
import time
from concurrent import futures
from typing import Optional

import grpc

from harness import details_pb2, status_pb2

GENERATE = "/overfill.v1.Inference/Generate"


@dataclasses.dataclass
class Fail:
    """The call fails, behind so many messages of its answer."""
    code: grpc.StatusCode
    retry_seconds: Optional[float] = None  # RetryInfo
    pushback_ms: Optional[int] = None      # for gRPC's own retries
    after: int = 0


@dataclasses.dataclass
class Seen:
    """A call that came."""
    time: float
    seconds_left: float
    previous_attempts: int  # of gRPC's own retries


class Front(grpc.GenericRpcHandler):

    def __init__(self, server, *orders):
        self._channel = grpc.insecure_channel(
            server.target, [("grpc.use_local_subchannel_pool", 1)])
        self._upstream = self._channel.unary_stream(GENERATE)
        self._mu = threading.Lock()
        self._orders = list(orders)
        self.seen = []
        self._server = grpc.server(futures.ThreadPoolExecutor(8), (self,))
        self.target = "127.0.0.1:%d" % self._server.add_insecure_port(
            "127.0.0.1:0")

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()
        self._channel.close()

    def gaps(self):
        """Seconds between a call and the next."""
        times = [seen.time for seen in self.seen]
        return [later - time for time, later in zip(times, times[1:])]

    def service(self, handler_call_details):
        if handler_call_details.method != GENERATE:
            return None
        return grpc.unary_stream_rpc_method_handler(self._generate)

    def _generate(self, request, context):
        attempts = dict(context.invocation_metadata()).get(
            "grpc-previous-rpc-attempts", 0)
        with self._mu:
            self.seen.append(Seen(time.monotonic(), context.time_remaining(),
                                  int(attempts)))
            order = self._orders.pop(0) if self._orders else None
        if order is not None and order.after == 0:
            self._fail(order, context)
        call = self._upstream(request, timeout=60)
        context.add_callback(call.cancel)
        for number, message in enumerate(call, 1):
            yield message
            if order is not None and number == order.after:
                self._fail(order, context)

    @staticmethod
    def _fail(order, context):
        trailers = []
        if order.retry_seconds is not None:
            status = status_pb2.Status(code=order.code.value[0])
            info = details_pb2.RetryInfo()
            info.retry_delay.FromNanoseconds(int(order.retry_seconds * 1e9))
            status.details.add().Pack(info)
            trailers.append(("grpc-status-details-bin",
                             status.SerializeToString()))
        if order.pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms",
                             str(order.pushback_ms)))
        context.set_trailing_metadata(trailers)
        context.abort(order.code, "as the test says")
