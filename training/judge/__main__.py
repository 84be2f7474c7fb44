"""Judges a pair through the server, beside full, pruned and scratch.

    python3 -m training.judge --pair models/demo \\
        --server_binary build/release/server/overfill-server --json FILE

Writes one object {name, commit, machine, results}, and beside it, with
--markdown, the document and its chart. Targets come from
docs/benchmarks/targets.json; whether they are met is computed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any, Dict, Tuple

from training.errors import Parser, main_of
from training.judge import report, score, served, systems
from training.judge.items import TEST_SEED, make_items
from training.judge.record import commit, machine


def measure(args: argparse.Namespace, stubs: Tuple[Any, Any]
            ) -> Dict[str, float]:
    items = make_items(args.seed, args.per_family)
    answers, speeds = {}, {}
    for system in systems.of_pair(args.pair):
        if not (system.decode / "config.json").exists():
            print(f"{system.name}: not measured, as there is no checkpoint at "
                  f"{system.decode}")
            continue
        print(f"{system.name}: {len(items)} questions", flush=True)
        answers[system.name], speeds[system.name] = score.ask_system(
            args.server_binary, args.pair, system, items, stubs)
    rows = score.exact_rows(items, answers)
    rows.update(score.agreement_rows(answers))
    rows.update(score.speed_rows(speeds))
    by_share = {}
    for share, folder in systems.ratios(args.pair).items():
        if folder == args.pair:
            by_share[share] = {name: answers[name]
                               for name in ("two_stage", "pruned")
                               if name in answers}
            continue
        print(f"{share:.0%} of the channels", flush=True)
        by_share[share] = {
            system.name: score.ask_system(
                args.server_binary, args.pair, system, items, stubs,
                bare=False, speed=False)[0]
            for system in systems.of_ratio(folder)
            if (system.decode / "config.json").exists()}
    rows.update(score.ratio_rows(items, by_share))
    rows.update(score.training_rows(args.pair))
    return rows


def main() -> None:
    parser = Parser(
        prog="training.judge", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=pathlib.Path,
                        default=served.ROOT / "models" / "demo")
    parser.add_argument("--server_binary", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=TEST_SEED)
    parser.add_argument("--per_family", type=int, default=200)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    with served.generated_stubs() as stubs:
        rows = measure(args, stubs)
    targets_path = served.ROOT / "docs" / "benchmarks" / "targets.json"
    targets = json.loads(targets_path.read_text(encoding="utf-8"))["quality"]
    results = report.results_of(rows, targets)
    written = {"name": "quality", "commit": commit(), "machine": machine(),
               "seed": args.seed, "per_family": args.per_family,
               "results": results}
    args.json.write_text(json.dumps(written, indent=2) + "\n",
                         encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(report.markdown(written), encoding="utf-8")
        args.markdown.with_suffix(".svg").write_text(
            report.chart(rows), encoding="utf-8")
    for result in results:
        if result["target"] is not None:
            print(f"{result['metric']}: {result['value']} "
                  f"(target {result['target']}, met {result['met']})")


if __name__ == "__main__":
    main_of(main)
