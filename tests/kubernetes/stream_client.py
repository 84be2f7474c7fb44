"""Keeps streams of Generate running and tells how each of them ended.

A process of its own, so that it shares no interpreter with the kubelets. Two
kinds of clients, as users have them:

  dns        one gRPC channel on the Service's name. gRPC itself resolves it,
             balances round-robin and watches each replica's health.
  endpoints  a list of addresses that is told line by line on standard input,
             as a proxy or a mesh learns them; calls go round-robin over it, on
             a channel for each. Nobody watches health.

Nothing is tried again. A line `stop` lets the streams end and then the program.
Each stream is a line of JSON on standard output.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time

import grpc

import stubs

OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
SERVICE_CONFIG = {"loadBalancingConfig": [{"round_robin": {}}],
                  "healthCheckConfig": {"serviceName": "overfill.v1.Inference"}}
CALL_SECONDS = 120
PAUSE_SECONDS = 0.1  # after a failure
SPREAD_SECONDS = 2  # over which the first calls begin
PROMPT = "Anna lives in Bergen. Tom owns a red kite. Where does Anna live?"


class Client:

    def __init__(self, options):
        self._options = options
        with open(options.ca, "rb") as file:
            self._tls = grpc.ssl_channel_credentials(file.read())
        with open(options.token_file, encoding="ascii") as file:
            self._metadata = [("authorization", f"Bearer {file.read()}")]
        self._stubs = {}
        self._addresses, self._turn = [], itertools.count()
        self.begun, self.stopping = asyncio.Event(), asyncio.Event()
        if options.mode == "dns":
            self._addresses = [f"dns://{options.dns}/{options.name}:"
                               f"{options.port}"]

    def tell(self, line):
        """A line of standard input; the first one begins the calls."""
        if line == "stop":
            self.stopping.set()
        elif self._options.mode == "endpoints":
            self._addresses = [f"{address}:{self._options.port}"
                               for address in json.loads(line)]
        self.begun.set()

    def _stub(self):
        """Whose turn it is: the address, and the stub."""
        address = self._addresses[next(self._turn) % len(self._addresses)]
        if address not in self._stubs:
            options = OPTIONS + (
                [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
                if self._options.mode == "dns" else
                # A pod's certificate names the Service, not its address.
                [("grpc.ssl_target_name_override", self._options.name)])
            self._stubs[address] = stubs.pb2_grpc.InferenceStub(
                grpc.aio.secure_channel(address, self._tls, options))
        return address, self._stubs[address]

    async def stream(self):
        """One call from its begin to its end."""
        request = stubs.pb2.GenerateRequest(text=PROMPT)
        # Of many lengths, so that ends and begins do not come in waves.
        wanted = random.randint(self._options.max_tokens // 4,
                                self._options.max_tokens)
        request.limits.max_tokens = wanted
        request.limits.ignore_eos = True
        address, stub = self._stub()
        result = {"to": address, "begin": time.monotonic(), "code": "OK",
                  "wanted": wanted, "tokens": 0, "completions": 0,
                  "reported": 0}
        try:
            async for event in stub.Generate(request, timeout=CALL_SECONDS,
                                             metadata=self._metadata):
                result["tokens"] += len(event.delta.token_ids)
                if event.HasField("completion"):
                    result["completions"] += 1
                    result["reported"] = (
                        event.completion.usage.completion_tokens)
        except grpc.RpcError as error:
            result["code"] = error.code().name
            result["details"] = error.details()
        result["end"] = time.monotonic()
        print(json.dumps(result), flush=True)
        return result["code"] == "OK"

    async def keep_running(self):
        await self.begun.wait()
        await asyncio.sleep(random.uniform(0, SPREAD_SECONDS))
        while not self.stopping.is_set():
            if not await self.stream():
                await asyncio.sleep(PAUSE_SECONDS)


async def run(options):
    client = Client(options)
    loop = asyncio.get_running_loop()

    def read_input():
        for line in iter(sys.stdin.readline, ""):
            loop.call_soon_threadsafe(client.tell, line.strip())
        loop.call_soon_threadsafe(client.tell, "stop")
    reader = loop.run_in_executor(None, read_input)
    await asyncio.gather(*(client.keep_running()
                           for _ in range(options.concurrency)))
    await reader


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["dns", "endpoints"], required=True)
    parser.add_argument("--name", required=True, help="the Service's DNS name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dns", help="HOST:PORT of the DNS server")
    parser.add_argument("--ca", required=True)
    parser.add_argument("--token_file", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--max_tokens", type=int, required=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
