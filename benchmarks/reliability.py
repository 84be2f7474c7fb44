"""How the server bears load, faults and abuse: `./dev bench reliability`.

  itl          running streams' gaps with and without prompts that arrive
  overload     ten times the rate that gives the most throughput
  mass_cancel  rounds of long requests, all cancelled, and a probe behind them
  prefix       one long prompt twice
  preempt      the same answers with and without a store that is too small
  soak         mixed load with cancels, dead readers, tiny deadlines and faults
               planted in the transfers of KV

Parts that are run one by one (--only) are joined in the one JSON file.
"""

import argparse
import functools
import pathlib
import secrets
import signal
import sys
from typing import Callable, Dict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from reliability_itl import itl  # noqa: E402
from reliability_kv import preempt, prefix  # noqa: E402
from reliability_overload import mass_cancel, overload  # noqa: E402
from report import Report  # noqa: E402
from reliability_soak import soak  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = """# Reliability

Written by `./dev bench reliability`; see `benchmarks/reliability.py` for what
each part does. The models are random weights of the shapes 2048/8192 (full)
and 1126/4505 (pruned), 16 layers, 32 heads of 64, 8 KV heads, vocabulary
128256, in bf16, but for `preempt`, which runs the demo pair. The load comes
from the same machine; its own CPU time is stated as a share of the cores.
"""


def run_soak(args: argparse.Namespace, report: Report) -> None:
    minutes = args.minutes or (1 if args.quick else 30)
    soak(args.build / "tests" / "soak" / "overfill-server-faulty", minutes,
         args.seed, args.small, report)


Measure = Callable[[pathlib.Path, bool, int, Report], None]


def on_server(measure: Measure) -> Callable[[argparse.Namespace, Report], None]:
    return lambda args, report: measure(
        args.build / "server" / "overfill-server", args.quick, args.seed,
        report)


# The soak is last: the rest is known after some minutes.
PARTS: Dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "prefix": on_server(prefix),
    "preempt": on_server(preempt),
    "mass_cancel": on_server(mass_cancel),
    "overload": on_server(overload),
    "itl": on_server(itl),
    "soak": run_soak,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench reliability", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "docs" /
                        "benchmarks" / "reliability.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true",
                        help="short parts: do they work, not what is it")
    parser.add_argument("--minutes", type=float, help="of the soak; 30")
    parser.add_argument("--small", action="store_true",
                        help="the soak with small models, for slow builds")
    parser.add_argument("--check", action="store_true",
                        help="fail where a target of what ran is missed")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--build", type=pathlib.Path,
                        default=ROOT / "build" / "release")
    args = parser.parse_args()
    print(f"--seed={args.seed}", flush=True)
    # So that servers are stopped; the soak has its own way to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("reliability", HEAD, args.json)
    failed = not report.run({
        part: functools.partial(measure, args, report)
        for part, measure in PARTS.items() if part in args.only})
    if args.check:
        # Sanitizers keep what is freed, and small runs are short.
        besides = ("soak.minutes", "soak.rss_change") if args.small else ()
        missed = report.missed(args.only, besides)
        print("targets missed: " + (", ".join(missed) or "none"), flush=True)
        failed = failed or bool(missed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
