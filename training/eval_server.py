"""Scores the three paths through a running server, as users meet them.

    python3 -m training.eval_server --pair models/demo \\
        --server_binary build/release/server/overfill-server --json FILE

Starts the server on the pair, asks every held-out question greedily on each
path, with the passage and without, and writes one object {name, commit,
machine, results}. Targets come from docs/benchmarks/targets.json; whether they
are met is computed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Dict, List, Sequence

from training import world
from training.eval_items import DEFAULT_SEED, Item, make_items
from training.judge import served
from training.judge.record import ROOT, commit, machine
from training.judge.report import results_of
from training.report import PATHS, quality_markdown


def exact_shares(
    items: Sequence[Item], answers: Sequence[str]
) -> Dict[str, float]:
    """Per family and for all lookups together: answers exactly right."""
    groups: Dict[str, List[bool]] = {}
    for item, answer in zip(items, answers):
        right = answer == item.answer
        groups.setdefault(item.family, []).append(right)
        if item.family in world.LOOKUP_FAMILIES:
            groups.setdefault("lookup", []).append(right)
    return {name: sum(marks) / len(marks) for name, marks in groups.items()}


def score(client: served.Client, items: Sequence[Item]) -> Dict[str, float]:
    """metric -> share, for every path and family."""
    metrics: Dict[str, float] = {}
    for path in PATHS:
        for part, prompts in (
                ("", [item.prompt for item in items]),
                ("without_passage.", [item.bare_prompt for item in items])):
            answers = [reply.text for reply in client.ask_all(path, prompts)]
            for family, share in exact_shares(items, answers).items():
                metrics[f"{path}.{family}.{part}exact"] = share
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=pathlib.Path,
                        default=ROOT / "models" / "demo")
    parser.add_argument("--server_binary", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--per_family", type=int, default=200)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    items = make_items(args.seed, args.per_family)
    with served.generated_stubs() as stubs, \
            served.server(args.server_binary, args.pair / "full",
                          args.pair / "decode") as target, \
            served.Client(target, stubs) as client:
        metrics = score(client, items)
    targets_path = ROOT / "docs" / "benchmarks" / "targets.json"
    targets = json.loads(targets_path.read_text(encoding="utf-8"))["quality"]
    results = results_of(metrics, targets)
    report = {"name": "quality", "commit": commit(), "machine": machine(),
              "seed": args.seed, "per_family": args.per_family,
              "results": results}
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(
            quality_markdown(report), encoding="utf-8")
    for result in results:
        print(f"{result['metric']}: {result['value']} "
              f"(target {result['target']}, met {result['met']})")


if __name__ == "__main__":
    main()
