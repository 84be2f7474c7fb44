"""Streams answers: Python, blocking calls. README.md tells how to run it."""

import sys
import time

import grpc

import common
from overfill.v1 import inference_pb2_grpc


def generate(stub, flags, prompt):
    request = common.make_request(flags, prompt)
    retries = common.Retries(flags)
    while True:
        answer = common.Answer(flags)
        call = stub.Generate(request, timeout=retries.seconds_left(),
                             credentials=common.call_credentials(flags))
        try:
            for event in call:
                answer.add(event)
            return
        except grpc.RpcError as error:
            delay = retries.delay(error, answer.has_begun)
            if delay is None:
                raise
        finally:
            # For whatever ends the loop, Ctrl-C too: the server stops at once.
            # A call that has ended does not mind.
            call.cancel()
            answer.end()
        time.sleep(delay)


def main():
    flags = common.parse_flags()
    try:
        with common.open_channel(grpc, flags) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            for prompt in flags.prompts:
                generate(stub, flags, prompt)
    except grpc.RpcError as error:
        common.note_error(error)
        return 1
    except (KeyboardInterrupt, common.Cancelled):
        common.note("cancelled")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
