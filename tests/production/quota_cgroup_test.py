"""The limits of a container: the server finds them, and lives within them."""

import concurrent.futures
import os
import re
import sys
import time

import servers
from cgroups import Group, NotPossible
from servers import CALL_SECONDS, Answer, harness, pb2, request

ROUNDS = 3
TOKENS = 200
LEAST_RATIO = 0.75
MOST_THROTTLED = 0.1  # of the time
MIB = 1 << 20


def make_large_pair():
    """One whose steps are work enough for two threads."""
    checkpoints = harness.checkpoints
    rng = checkpoints.seeded(f"{harness.SEED} large")
    shape = checkpoints.Shape(
        "LlamaForCausalLM", layers=6, hidden=768, intermediate=2304, heads=8,
        kv_heads=4, head_dim=64, stored="bfloat16")
    flags = []
    for flag, half, sizes in [
            ("prefill_model", "full", {}),
            ("decode_model", "decode", {"hidden": 512, "intermediate": 1536})]:
        path = os.path.join(harness.work_dir("large"), half)
        checkpoints.write_checkpoint(path, shape.changed(**sizes),
                                     rng.getrandbits(31))
        flags.append(f"--{flag}={path}")
    return flags


class GroupCase(servers.Case):

    def group(self, **how):
        try:
            group = Group(**how)
        except NotPossible as reason:
            print(f"\nSKIPPED, not tested at all: {reason}", file=sys.stderr,
                  flush=True)
            self.skipTest(str(reason))
        self.addCleanup(group.close)
        return group

    def num_threads(self, server):
        (number,) = re.findall(r"device .*?, (\d+) threads?,",
                               "\n".join(server.lines))
        return int(number)


class CpuTest(GroupCase):

    def threads_in(self, cpus, **how):
        group = self.group(**how)
        group.set_cpus(cpus)
        server = self.serve(wrapper=group.wrapper())
        self.assertEqual(len(Answer(server.stub.Generate(request())).ids), 8)
        number = self.num_threads(server)
        self.assert_stops(server)
        return number

    def test_threads_follow_the_quota(self):
        machine = len(os.sched_getaffinity(0))
        self.assertEqual(self.threads_in(1), 1)
        self.assertEqual(self.threads_in(0.5), 1)
        self.assertEqual(self.threads_in(1.5), min(machine, 2))
        self.assertEqual(self.threads_in(1000), machine)
        # A pod's quota binds its containers.
        self.assertEqual(self.threads_in(1, inner=True), 1)


class ThroughputTest(GroupCase):
    """A quota of one CPU gives as much as one CPU does: more threads than the
    quota pays for use it up early in each period, and all stand still until
    the next one.
    """

    @classmethod
    def setUpClass(cls):
        cls.pair = make_large_pair()

    def speed(self, wrapper, *flags, threads=1, throttled=lambda: 0):
        """Tokens in each second, and the share of the time that the server had
        to stand still.
        """
        server = self.serve(*flags, wrapper=wrapper, pair=self.pair)
        self.assertEqual(self.num_threads(server), threads)
        Answer(server.stub.Generate(request(max_tokens=10)))
        waited, begin = throttled(), time.monotonic()
        answer = Answer(server.stub.Generate(request(max_tokens=TOKENS)))
        seconds = time.monotonic() - begin
        waited = throttled() - waited
        self.assertEqual(len(answer.ids), TOKENS, answer.error)
        server.kill()
        return TOKENS / seconds, waited / seconds

    def in_quota(self, *flags, threads=1):
        group = self.group()
        group.set_cpus(1)
        return self.speed(group.wrapper(), *flags, threads=threads,
                          throttled=group.throttled_seconds)

    def on_one_cpu(self):
        cpu = max(os.sched_getaffinity(0))
        return self.speed(["taskset", "-c", str(cpu)])[0]

    @staticmethod
    def is_good(run, wanted):
        speed, throttled = run
        return speed >= LEAST_RATIO * wanted and throttled <= MOST_THROTTLED

    def test_one_cpu(self):
        """In turn, and by most rounds: the machine has other things to do."""
        rounds = [(self.on_one_cpu(), self.in_quota(),
                   self.in_quota("--threads=8", threads=8))
                  for _ in range(ROUNDS)]
        print(f"\none CPU, a quota of one, and eight threads in it: {rounds}",
              flush=True)
        good = [self.is_good(own, alone) for alone, own, _ in rounds]
        self.assertGreater(sum(good), ROUNDS / 2)
        if len(os.sched_getaffinity(0)) == 1:
            return  # threads cannot use up a quota early here
        # The measure sees a server that asks for the machine's number.
        good = [self.is_good(many, own[0]) for _, own, many in rounds]
        self.assertLess(sum(good), ROUNDS / 2)


class MemoryTest(GroupCase):

    def store(self, limit, *flags):
        """The server in a group, and the bytes of its KV store."""
        group = self.group()
        group.set_memory(limit)
        server = self.serve("--kv_cache_bytes=0", *flags,
                            wrapper=group.wrapper())
        (kv_bytes,) = re.findall(r"KV store: .* (\d+) bytes",
                                 "\n".join(server.lines))
        return group, server, int(kv_bytes)

    def test_the_store_follows_the_limit(self):
        for limit in (256 * MIB, 512 * MIB):
            _, server, kv_bytes = self.store(limit)
            info = server.stub.GetModelInfo(pb2.GetModelInfoRequest())
            weights = 2 * (info.full.num_parameters +
                           info.pruned.num_parameters)
            # Half of what the weights leave.
            self.assertAlmostEqual(kv_bytes, (limit - weights) / 2,
                                   delta=limit / 100)
            self.assert_stops(server)

    def test_it_fits_when_it_is_full(self):
        """Memory that is only promised at the start must be there later."""
        limit = 192 * MIB
        group, server, kv_bytes = self.store(limit)
        blocks = sum(count for (store, _), count in server.blocks().items()
                     if store == "shared")
        num_prompts = int(blocks / 120) + 1

        def fill(number):
            ids = [5 + (number + i * i) % 250 for i in range(2000)]
            return Answer(server.stub.Generate(
                request(tokens=pb2.TokenIds(ids=ids), max_tokens=2),
                timeout=CALL_SECONDS))
        with concurrent.futures.ThreadPoolExecutor(4) as executor:
            for answer in executor.map(fill, range(num_prompts)):
                self.assertIsNone(answer.error)
        self.assertLess(server.blocks()["shared", "free"], 0.1 * blocks)
        self.assertEqual(group.kills(), 0)
        self.assertGreater(group.peak_bytes(), kv_bytes)
        self.assertLessEqual(group.peak_bytes(), limit)
        self.assert_stops(server)


if __name__ == "__main__":
    servers.main()
