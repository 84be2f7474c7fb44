"""The bundled pair, as it is shipped, through the real server.

    python3 -B tests/demo/demo_test.py --server=BINARY

Held-out lookup questions must reach the targets of
docs/benchmarks/targets.json on the two_stage path, and must not be answered
without their passage: the lookups of `./dev eval`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from training import eval_items, eval_server, world  # noqa: E402
from training.judge import served  # noqa: E402
from training.judge.report import results_of  # noqa: E402

PAIR = ROOT / "models" / "demo"
PER_FAMILY = 200
MAX_PAIR_BYTES = 20 * 1000 * 1000
SERVER = pathlib.Path()


class DemoTest(unittest.TestCase):

    def test_answers_come_from_the_passage(self) -> None:
        items = [item for item in eval_items.make_items(
                     eval_items.DEFAULT_SEED, PER_FAMILY)
                 if item.family in world.LOOKUP_FAMILIES]
        self.assertEqual(len(world.LOOKUP_FAMILIES) * PER_FAMILY, len(items))
        with served.generated_stubs() as stubs, \
                served.server(SERVER, PAIR / "full", PAIR / "decode"
                              ) as target, \
                served.Client(target, stubs) as client:
            scores = eval_server.score(client, items)
        targets = json.loads((ROOT / "docs/benchmarks/targets.json").read_text(
            encoding="utf-8"))["quality"]
        results = {result["metric"]: result
                   for result in results_of(scores, targets)}
        print(json.dumps(scores, indent=1), flush=True)
        for metric in targets:
            self.assertTrue(results[metric]["met"], results[metric])

    def test_the_pair_is_small_and_its_widths_are_odd(self) -> None:
        size = sum(path.stat().st_size for path in PAIR.rglob("*")
                   if path.is_file())
        self.assertLessEqual(size, MAX_PAIR_BYTES)
        config = json.loads((PAIR / "decode" / "config.json").read_text())
        self.assertEqual(1, config["hidden_size"] % 2)
        self.assertEqual(1, config["intermediate_size"] % 2)

    def test_the_manifest_names_what_is_there(self) -> None:
        stated = json.loads((PAIR / "decode" / "overfill.json").read_text())
        for half in ("full", "decode"):
            self.assertIn("model.safetensors", stated[half]["files"])
            for name, digest in stated[half]["files"].items():
                content = (PAIR / half / name).read_bytes()
                self.assertEqual(
                    digest, hashlib.sha256(content).hexdigest(),
                    f"{half}/{name}")


def main() -> None:
    global SERVER
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=pathlib.Path, required=True)
    args, rest = parser.parse_known_args()
    SERVER = args.server
    unittest.main(argv=sys.argv[:1] + rest)


if __name__ == "__main__":
    main()
