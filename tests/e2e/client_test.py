"""overfill-client against the real server."""

import json
import signal
import subprocess

import harness
from harness import pb2, wait_until


class ClientTest(harness.ServerCase):

    def run_client(self, *args, stdin="", target=None):
        done = subprocess.run(
            [harness.client_binary, f"--target={target or self.server.target}",
             *args], input=stdin.encode(), capture_output=True,
            timeout=harness.CALL_SECONDS)
        return (done.returncode, done.stdout.decode(),
                done.stderr.decode().splitlines())

    def want(self, text, max_tokens=20, **members):
        request = pb2.GenerateRequest(text=text, **members)
        request.sampling.temperature = 0
        request.limits.max_tokens = max_tokens
        return self.generate(request)

    def test_streams_text(self):
        answer = self.want("Hello there")
        code, out, err = self.run_client("--max_tokens=20", "--temperature=0",
                                         "Hello there")
        self.assertEqual((code, err), (0, []))
        self.assertEqual(out, answer.text + "\n")

    def test_prompt_from_standard_input(self):
        answer = self.want("From\nstdin")
        code, out, _ = self.run_client("--max_tokens", "20", "--temperature",
                                       "0", "-", stdin="From\nstdin")
        self.assertEqual((code, out), (0, answer.text + "\n"))

    def test_paths(self):
        for path in ["two_stage", "full", "pruned"]:
            answer = self.want(
                "Hello", path=pb2.DecodePath.Value(
                    f"DECODE_PATH_{path.upper()}"))
            code, out, _ = self.run_client(f"--path={path}", "--max_tokens=20",
                                           "--temperature=0", "Hello")
            self.assertEqual((code, out), (0, answer.text + "\n"), path)

    def test_json_events(self):
        answer = self.want("Hello")
        code, out, err = self.run_client("--json", "--max_tokens=20",
                                         "--temperature=0", "--logprobs=2",
                                         "Hello")
        self.assertEqual((code, err), (0, []))
        events = [json.loads(line) for line in out.splitlines()]
        ids, text = [], ""
        for event in events[:-1]:
            ids += event["delta"].get("token_ids", [])
            text += event["delta"].get("text", "")
            for logprobs in event["delta"].get("logprobs", []):
                self.assertEqual(len(logprobs["top"]), 2)
        self.assertEqual((ids, text), (answer.ids, answer.text))
        usage = events[-1]["completion"]["usage"]
        self.assertEqual(usage["completion_tokens"], len(ids))

    def test_several_answers(self):
        flags = ["--n=3", "--seed=7", "--temperature=1.5", "Hello"]
        request = pb2.GenerateRequest(text="Hello", n=3)
        request.sampling.seed = 7
        request.sampling.temperature = 1.5
        # First tokens alone are the same in every batch.
        request.limits.max_tokens = 1
        texts = self.generate(request).texts
        code, out, err = self.run_client("--stats", "--max_tokens=1", *flags)
        self.assertEqual(code, 0)
        self.assertEqual(out, "".join(
            f"[{i + 1}/3]\n{texts.get(i, '')}\n" for i in range(3)))
        self.assertEqual(sorted(line[:6] for line in err),
                         ["[1/3] ", "[2/3] ", "[3/3] "])
        code, out, _ = self.run_client("--json", "--max_tokens=30",
                                       "--ignore_eos", *flags)
        self.assertEqual(code, 0)
        num_tokens, ended = {}, []
        for event in map(json.loads, out.splitlines()):
            if "completion" in event:
                ended.append(event["completion"].get("index", 0))
                continue
            index = event["delta"].get("index", 0)
            num_tokens[index] = (num_tokens.get(index, 0) +
                                 len(event["delta"].get("token_ids", [])))
        self.assertEqual(num_tokens, {0: 30, 1: 30, 2: 30})
        self.assertEqual(sorted(ended), [0, 1, 2])

    def test_sampling_flags_reach_the_server(self):
        flags = ["--seed=7", "--temperature=1.5", "--top_p=0.9", "--top_k=40",
                 "--min_p=0.01", "--max_tokens=30", "Hello"]
        request = pb2.GenerateRequest(text="Hello")
        request.sampling.seed = 7
        request.sampling.temperature = 1.5
        request.sampling.top_p = 0.9
        request.sampling.top_k = 40
        request.sampling.min_p = 0.01
        request.limits.max_tokens = 30
        answer = self.generate(request)
        code, out, _ = self.run_client(*flags)
        self.assertEqual((code, out), (0, answer.text + "\n"))

    def test_stop(self):
        whole = self.want("Hello", 40)
        # A program's argument holds no NUL.
        stop = next(c for c in whole.text[5:] if c != "\0")
        code, out, _ = self.run_client("--max_tokens=40", "--temperature=0",
                                       "--stop=never seen", f"--stop={stop}",
                                       "Hello")
        self.assertEqual(code, 0)
        self.assertEqual(out, whole.text[:whole.text.index(stop)] + "\n")

    def test_stats(self):
        code, _, err = self.run_client("--stats", "--max_tokens=20",
                                       "--path=full", "Hello")
        self.assertEqual((code, len(err)), (0, 1))
        self.assertRegex(err[0], r"path full, \d+ prompt tokens, \d+ tokens, "
                                 r"ttft [\d.]+ ms, [\d.]+ tokens/s")

    def test_errors_are_one_line(self):
        code, out, err = self.run_client("--top_p=0", "--max_tokens=0", "Hello")
        self.assertEqual((code, out, len(err)), (1, "", 1))
        self.assertIn("INVALID_ARGUMENT", err[0])
        self.assertIn("sampling.top_p: ", err[0])
        self.assertIn("limits.max_tokens: ", err[0])
        done = subprocess.run(
            [harness.client_binary, f"--target={self.server.target}", "-"],
            input=b"ab\xff", capture_output=True, timeout=harness.CALL_SECONDS)
        self.assertEqual(
            (done.returncode, done.stdout, done.stderr),
            (1, b"", b"overfill-client: INVALID_ARGUMENT: text: must be valid "
             b"UTF-8\n"))
        code, out, err = self.run_client("Hello", target="127.0.0.1:1")
        self.assertEqual((code, out, len(err)), (1, "", 1))
        self.assertIn("UNAVAILABLE", err[0])
        code, _, err = self.run_client("--timeout=50ms", "--ignore_eos",
                                       "--max_tokens=15000", "Hello")
        self.assertEqual((code, len(err)), (1, 1))
        self.assertIn("DEADLINE_EXCEEDED", err[0])

    def test_bad_flags(self):
        for flags in [["--no_such=1", "x"], ["--seed=x", "x"], [],
                      ["two", "prompts"], ["--path=half", "x"],
                      ["--seed=-1", "x"]]:
            code, out, err = self.run_client(*flags)
            self.assertEqual((code, out, len(err)), (2, "", 1), flags)

    def test_interrupt_cancels_on_the_server(self):
        process = subprocess.Popen(
            [harness.client_binary, f"--target={self.server.target}",
             "--max_tokens=15000", "--json", "--ignore_eos", "Hello"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        self.assertEqual((process.returncode, err), (130, b""))
        self.assertTrue(wait_until(lambda: self.server.live() == 0, 10))
        cancelled = self.server.metrics()[
            'overfill_requests_total{outcome="cancelled",path="two_stage"}']
        self.assertGreaterEqual(cancelled, 1)


if __name__ == "__main__":
    harness.main()
