"""What both Python clients share: flags, the channel, retries, messages."""

import argparse
import os
import random
import sys
import time

import grpc

# Made by protoc; README.md has the command.
from overfill.rpc import error_details_pb2, status_pb2
from overfill.v1 import inference_pb2

SERVICE_CONFIG = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "service_config.json")
TOKEN_VARIABLE = "OVERFILL_TOKEN"

FIRST_BACKOFF = 0.2  # seconds
LONGEST_BACKOFF = 10.0


def note(line):
    print(line, file=sys.stderr, flush=True)


def parse_flags():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Streams answers of an OverFill "
        f"server. A token may also stand in {TOKEN_VARIABLE}.")
    add = parser.add_argument
    add("--target", default="127.0.0.1:50051",
        help="HOST:PORT, or dns:///NAME:PORT for all addresses of a name")
    add("--ca", help="PEM of the servers' CA; turns TLS on")
    add("--cert", help="PEM of the client's certificate, for mTLS")
    add("--key", help="PEM of its key")
    add("--server_name", help="name in the server's certificate (the target's)")
    add("--token_file", help="file with the bearer token")
    add("--max_tokens", type=int, help="longest answer (the server's)")
    add("--temperature", type=float, help="0 is greedy (the model's)")
    add("--timeout", type=float, default=60,
        help="seconds for an answer, with all its tries (60)")
    add("--retries", type=int, default=4, help="further tries (4)")
    add("--grpc_retries", action="store_true",
        help="leave the retries to gRPC and its service config")
    add("--service_config", default=SERVICE_CONFIG, help="gRPC service config")
    add("--cancel_after", type=int, default=0, help="cancel after N tokens")
    add("prompts", metavar="PROMPT", nargs="+", help="answered in turn")
    flags = parser.parse_args()
    if bool(flags.cert) != bool(flags.key) or (flags.cert and not flags.ca):
        parser.error("--cert, --key and --ca go together")
    try:
        if read_token(flags) is not None and not flags.ca:
            parser.error("a token goes over TLS only: --ca is missing")
        for path in [flags.ca, flags.cert, flags.key, flags.service_config]:
            read_file(path)
    except OSError as error:
        parser.error(str(error))
    return flags


def read_file(path):
    if not path:
        return None
    with open(path, "rb") as file:
        return file.read()


def read_token(flags):
    if flags.token_file:
        return read_file(flags.token_file).decode().strip()
    return os.environ.get(TOKEN_VARIABLE) or None


def call_credentials(flags):
    """Read for each call: a token's file may be renewed at any time."""
    token = read_token(flags)
    return None if token is None else grpc.access_token_call_credentials(token)


def open_channel(library, flags):
    """One for all calls of a program. The library is grpc or grpc.aio."""
    options = [
        ("grpc.service_config", read_file(flags.service_config)),
        ("grpc.enable_retries", int(flags.grpc_retries)),
        # Finds out in 40 s that a peer is gone, also while a request waits in
        # the queue. The server takes a ping every 10 s, and not more.
        ("grpc.keepalive_time_ms", 30000),
        ("grpc.keepalive_timeout_ms", 10000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A server that comes back is found soon.
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]
    if flags.server_name:
        options.append(("grpc.ssl_target_name_override", flags.server_name))
    if not flags.ca:
        return library.insecure_channel(flags.target, options)
    credentials = grpc.ssl_channel_credentials(
        read_file(flags.ca), read_file(flags.key), read_file(flags.cert))
    return library.secure_channel(flags.target, credentials, options)


def make_request(flags, prompt):
    request = inference_pb2.GenerateRequest(text=prompt)
    if flags.max_tokens is not None:
        request.limits.max_tokens = flags.max_tokens
    if flags.temperature is not None:
        request.sampling.temperature = flags.temperature
    return request


class Cancelled(Exception):
    """--cancel_after is reached."""


class Answer:
    """Prints an answer as it comes."""

    def __init__(self, flags):
        self._cancel_after = flags.cancel_after
        self._num_tokens = 0
        self.has_begun = False

    def add(self, event):
        self.has_begun = True
        if event.WhichOneof("event") == "completion":
            usage = event.completion.usage
            reason = inference_pb2.FinishReason.Name(
                event.completion.finish_reason)
            note(f"done: {reason[len('FINISH_REASON_'):]}, "
                 f"{usage.prompt_tokens} prompt tokens, "
                 f"{usage.completion_tokens} tokens")
            return
        print(event.delta.text, end="", flush=True)
        self._num_tokens += len(event.delta.token_ids)
        if 0 < self._cancel_after <= self._num_tokens:
            raise Cancelled

    def end(self):
        if self.has_begun:
            print(flush=True)


class Retries:
    """Whether and when a request is sent again, within its tries and time."""

    def __init__(self, flags):
        self._most = 0 if flags.grpc_retries else flags.retries
        self._count = 0
        self._deadline = time.monotonic() + flags.timeout
        self._backoff = FIRST_BACKOFF

    def seconds_left(self):
        return max(self._deadline - time.monotonic(), 0)

    def delay(self, error, has_begun):
        """Seconds to wait before the next try. None: the error stands."""
        # What has been shown would be shown twice, or differ.
        if has_begun or self._count == self._most:
            return None
        wait = find_detail(error, error_details_pb2.RetryInfo)
        if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Without RetryInfo it will not pass: a message too large, say.
            if wait is None:
                return None
        elif error.code() != grpc.StatusCode.UNAVAILABLE:
            return None
        at_least = wait.retry_delay.ToNanoseconds() / 1e9 if wait else 0
        # Upwards alone: clients refused together do not come back together,
        # and none before its time.
        delay = max(at_least, self._backoff) * random.uniform(1, 1.2)
        if delay >= self.seconds_left():
            return None
        self._backoff = min(2 * self._backoff, LONGEST_BACKOFF)
        self._count += 1
        note(f"retry {self._count} of {self._most} in {delay:.2f} s: "
             f"{error.code().name}: {error.details()}")
        return delay


def find_detail(error, message_type):
    """The google.rpc detail of this type, or None."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for packed in status_pb2.Status.FromString(value).details:
            found = message_type()
            if packed.Unpack(found):
                return found
    return None


def note_error(error):
    bad = find_detail(error, error_details_pb2.BadRequest)
    if bad is None:
        note(f"error: {error.code().name}: {error.details()}")
        return
    note(f"error: {error.code().name}")
    for violation in bad.field_violations:
        note(f"  {violation.field}: {violation.description}")
