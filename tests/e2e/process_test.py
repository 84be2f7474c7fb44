"""The server as a process: its flags, its start, its end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest

import grpc

import harness
from harness import (Answer, Server, health_grpc, health_pb2, make_pair, pb2,
                     wait_until)


def run_server(*flags, env=None):
    """(exit code, lines of stderr, stdout) of a server that should not stay."""
    done = subprocess.run([harness.server_binary, *flags],
                          capture_output=True, text=True,
                          timeout=harness.START_SECONDS,
                          env=dict(os.environ, **(env or {})))
    return done.returncode, done.stderr.splitlines(), done.stdout


def long_request(num_tokens=15000):
    request = pb2.GenerateRequest(text="Hello there")
    request.sampling.temperature = 0
    request.limits.ignore_eos = True
    request.limits.max_tokens = num_tokens
    return request


class BadSetupTest(unittest.TestCase):
    """One clear line on stderr, exit code 2, before a port is opened."""

    def check(self, expected, *flags, env=None, models=True):
        code, lines, out = run_server(
            *(make_pair() if models else []), "--listen=127.0.0.1:0",
            "--metrics_listen=127.0.0.1:0", *flags, env=env)
        self.assertEqual(code, 2, lines)
        self.assertEqual(len(lines), 1, lines)
        self.assertTrue(lines[0].startswith("overfill-server: "), lines)
        self.assertIn(expected, lines[0])
        self.assertEqual(out, "")

    def test_flags(self):
        self.check("--prefill_model: needed", models=False)
        self.check("--no_such_flag: unknown flag", "--no_such_flag=1")
        self.check("--block_tokens: must be", "--block_tokens=0")
        self.check("one needs the other", "--tls_cert=x")
        self.check("--prefill_device: not supported yet",
                   "--prefill_device=cpu")
        self.check("--itl_target: must be a duration", "--itl_target=soon")
        self.check("swap_bytes 1 does not hold", "--swap_bytes=1")
        self.check("--decode_weights: must be bf16", "--decode_weights=int4")
        self.check("OVERFILL_THREADS: must be",
                   env={"OVERFILL_THREADS": "many"})
        self.check("--flagfile: /no/such/file", "--flagfile=/no/such/file")
        self.check("--listen: must be HOST:PORT", "--listen=here")

    def test_device(self):
        # No CUDA backend, or no such device.
        self.check("CUDA", "--device=cuda:77")

    def test_limits_that_do_not_fit_the_pair(self):
        self.check("max_sequence_tokens", "--max_sequence_tokens=1000000")
        self.check("kv_cache_bytes", "--kv_cache_bytes=10")

    def test_model_that_is_not_there(self):
        self.check("/no/such/model", "--prefill_model=/no/such/model")

    def broken(self, half, edit):
        """Flags of the pair with one half edited."""
        directory = harness.work_dir(self.id())
        flags = []
        for flag in make_pair():
            name, path = flag[2:].split("=")
            copy = os.path.join(directory, os.path.basename(path))
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
            if os.path.basename(path) == half:
                edit(copy)
            flags.append(f"--{name}={copy}")
        return flags

    def test_broken_checkpoints(self):
        def truncate(directory):
            path = os.path.join(directory, "model.safetensors")
            os.truncate(path, os.path.getsize(path) - 100)

        def no_json(directory):
            with open(os.path.join(directory, "config.json"), "w") as file:
                file.write("{")

        def no_tokenizer(directory):
            os.remove(os.path.join(directory, "tokenizer.json"))

        self.check("full/model.safetensors: tensor ",
                   *self.broken("full", truncate), models=False)
        self.check("config.json", *self.broken("decode", no_json),
                   models=False)
        self.check("tokenizer.json", *self.broken("full", no_tokenizer),
                   models=False)

    def test_pairs_that_do_not_fit(self):
        for member, value in [("rope_theta", 20000.0),
                              ("num_key_value_heads", 4),
                              ("head_dim", 32)]:
            self.check(f"are no pair: {member} is", *self.broken(
                "decode", lambda d: harness.set_config(d, **{member: value})),
                       models=False)

    def test_bad_defaults_of_the_model(self):
        def edit(directory):
            path = os.path.join(directory, "generation_config.json")
            with open(path, "w") as file:
                json.dump({"do_sample": True, "top_p": 0.0}, file)
        self.check("generation_config.json", *self.broken("full", edit),
                   models=False)

    def test_ports_that_are_taken(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.check(f"cannot listen on {address}", f"--listen={address}")
            self.check(f"cannot listen on {address}",
                       f"--metrics_listen={address}")
        self.check("cannot listen on 192.0.2.1:5",
                   "--listen=192.0.2.1:5", "--allow_plaintext")


class StartTest(unittest.TestCase):

    def test_help_and_version(self):
        code, lines, out = run_server("--help")
        self.assertEqual((code, lines), (0, []))
        self.assertIn("--prefill_model=DIR", out)
        code, lines, out = run_server("--version")
        self.assertEqual((code, lines), (0, []))
        self.assertRegex(out, r"^overfill-server \d+\.\d+\.\d+\n$")

    def test_flagfile_and_environment(self):
        path = os.path.join(harness.work_dir("flagfile"), "flags")
        with open(path, "w") as file:
            file.write("# the pair\n" + "\n".join(make_pair()) +
                       "\n--max_decode_batch=3\n")
        server = Server([f"--flagfile={path}"],
                        env={"OVERFILL_MAX_QUEUED_REQUESTS": "5",
                             "OVERFILL_MAX_DECODE_BATCH": "9"})
        limits = server.stub.GetModelInfo(pb2.GetModelInfoRequest()).limits
        self.assertEqual(limits.max_decode_batch, 3)
        self.assertEqual(limits.max_queued_requests, 5)
        self.assertEqual(server.stop(), 0)

    def test_dummy_weights(self):
        server = Server(make_pair() + ["--load_format=dummy"])
        answer = Answer(server.stub.Generate(long_request(5)))
        self.assertEqual(len(answer.ids), 5)
        self.assertEqual(server.stop(), 0)

    def test_log_says_what_is_served(self):
        server = Server(make_pair())
        info = server.stub.GetModelInfo(pb2.GetModelInfoRequest())
        log = "\n".join(server.lines)
        self.assertIn(info.pair_digest, log)
        self.assertIn(f"{info.limits.kv_blocks} blocks", log)
        self.assertIn(server.target, log)
        # The warm-up is no traffic.
        self.assertEqual(
            [value for series, value in server.metrics().items()
             if re.match("overfill_(requests_total|.*_seconds_count)", series)
             and value != 0], [])
        self.assertEqual(server.stop(), 0)


class WatchdogTest(unittest.TestCase):

    def test_health_follows_the_steps(self):
        # One step reads the whole prompt, which takes seconds; a timeout that
        # short makes of it a step that is stuck, for a while.
        server = Server(make_pair() + ["--prefill_chunk_tokens=16000",
                                       "--stuck_step_timeout=1ms"])
        self.addCleanup(server.process.kill)
        watches = [health_grpc.HealthStub(server.channel).Watch(
            health_pb2.HealthCheckRequest(service=name))
            for name in ["", "overfill.v1.Inference"]]
        serving = health_pb2.HealthCheckResponse.SERVING
        for watch in watches:
            self.assertEqual(next(watch).status, serving)
        request = pb2.GenerateRequest(
            tokens=pb2.TokenIds(ids=[5 + i % 50 for i in range(15900)]))
        request.limits.max_tokens = 1
        call = server.stub.Generate(request)
        for watch in watches:
            self.assertEqual(next(watch).status,
                             health_pb2.HealthCheckResponse.NOT_SERVING)
        self.assertIsNone(Answer(call).error)
        for watch in watches:
            self.assertEqual(next(watch).status, serving)
            watch.cancel()
        stuck = [line for line in server.lines if "is stuck" in line]
        self.assertEqual(len(stuck), 1, server.lines)
        self.assertIn("the prefill pool is stuck", stuck[0])
        self.assertIn(" 15900 prompt rows ", stuck[0])
        metrics = server.metrics()
        self.assertEqual(
            metrics['overfill_stuck_steps_total{pool="prefill"}'], 1)
        self.assertEqual(
            metrics['overfill_stuck_steps_total{pool="decode"}'], 0)
        self.assertEqual(metrics["overfill_integrity_failures_total"], 0)
        self.assertEqual(server.stop(), 0)

    def test_idle_is_not_stuck(self):
        server = Server(make_pair() + ["--stuck_step_timeout=1ms"])
        self.addCleanup(server.process.kill)
        time.sleep(3)
        self.assertEqual(health_grpc.HealthStub(server.channel).Check(
            health_pb2.HealthCheckRequest()).status,
            health_pb2.HealthCheckResponse.SERVING)
        self.assertEqual(
            [v for series, v in server.metrics().items()
             if series.startswith("overfill_stuck_steps_total") and v], [])
        self.assertEqual(server.stop(), 0)


class DrainTest(unittest.TestCase):

    def test_streams_finish_and_no_new_ones_begin(self):
        # However slow a sanitizer makes it.
        server = Server(make_pair() + ["--drain_timeout=10m"])
        watch = health_grpc.HealthStub(server.channel).Watch(
            health_pb2.HealthCheckRequest())
        self.assertEqual(next(watch).status,
                         health_pb2.HealthCheckResponse.SERVING)
        call = server.stub.Generate(long_request(4000))
        next(call)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(next(watch).status,
                         health_pb2.HealthCheckResponse.NOT_SERVING)
        refused = Answer(server.stub.Generate(long_request(1)))
        self.assertEqual(refused.error.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(refused.error.details(),
                         "the server is shutting down")
        answer = Answer(call)
        self.assertEqual(answer.completion.usage.completion_tokens, 4000)
        self.assertEqual(server.process.wait(harness.STOP_SECONDS), 0)
        server.stop()

    def test_streams_that_are_only_being_read_finish(self):
        server = Server(make_pair())
        request = long_request(3000)
        request.output.logprobs = 20  # more than a connection takes unread
        call = server.narrow_stub().Generate(request)
        first = next(call)
        self.assertTrue(wait_until(lambda: server.live() == 0))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(4)
        self.assertIsNone(server.process.poll())
        answer = Answer(call)
        self.assertEqual(answer.completion.usage.completion_tokens, 3000)
        self.assertEqual(len(first.delta.token_ids) + len(answer.ids), 3000)
        # Nothing to wait for any more.
        self.assertEqual(server.process.wait(10), 0)
        server.stop()

    def test_unary_calls_finish(self):
        server = Server(make_pair())
        # One thread tokenizes them, one after the other; all have come in long
        # before the first is done.
        text = "word and " * 400_000
        calls = [server.stub.Tokenize.future(pb2.TokenizeRequest(text=text))
                 for _ in range(12)]
        self.assertTrue(wait_until(lambda: any(c.done() for c in calls)))
        server.process.send_signal(signal.SIGTERM)
        for call in calls:
            self.assertGreater(len(call.result().ids), 400_000)
        self.assertEqual(server.process.wait(harness.STOP_SECONDS), 0)
        server.stop()

    def test_timeout_ends_streams(self):
        server = Server(make_pair() + ["--drain_timeout=100ms"])
        call = server.stub.Generate(long_request())
        next(call)
        server.process.send_signal(signal.SIGINT)
        answer = Answer(call)
        self.assertEqual(answer.error.code(), grpc.StatusCode.UNAVAILABLE)
        completion = harness.details(answer.error, pb2.Completion)
        self.assertGreater(completion.usage.completion_tokens, 0)
        self.assertEqual(server.process.wait(harness.STOP_SECONDS), 0)
        server.stop()

    def test_second_signal_ends_at_once(self):
        server = Server(make_pair() + ["--drain_timeout=10m"])
        call = server.stub.Generate(long_request())
        next(call)
        server.process.send_signal(signal.SIGTERM)
        self.assertTrue(wait_until(
            lambda: any("draining" in line for line in server.lines)))
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(5), 128 + signal.SIGTERM)
        threading.Thread(target=lambda: Answer(call), daemon=True).start()
        server.stop()


if __name__ == "__main__":
    harness.main()
