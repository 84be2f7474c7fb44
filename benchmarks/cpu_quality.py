"""What int8 weights cost the shipped pair in right answers."""

import pathlib
import statistics
import sys
from typing import Dict

from report import Report

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import eval_items, eval_server  # noqa: E402
from training.judge import served  # noqa: E402

PAIR = ROOT / "models" / "demo"


def right_answers(binary: pathlib.Path, weights: str, per_family: int
                  ) -> Dict[str, float]:
    """Exact answers of two_stage by family, lookups together beside."""
    items = eval_items.make_items(eval_items.DEFAULT_SEED, per_family)
    with served.generated_stubs() as stubs, \
            served.server(binary, PAIR / "full", PAIR / "decode",
                          [f"--weights={weights}"]) as target, \
            served.Client(target, stubs) as client:
        replies = client.ask_all("two_stage", [item.prompt for item in items])
    return eval_server.exact_shares(items, [reply.text for reply in replies])


def quality(binary: pathlib.Path, per_family: int, report: Report) -> None:
    shares = {weights: right_answers(binary, weights, per_family)
              for weights in ("bf16", "int8")}
    for weights, by_family in shares.items():
        for family, share in by_family.items():
            report.add(f"quality.{weights}.{family}", share, "share")
    means = {weights: statistics.mean(
        share for family, share in by_family.items() if family != "lookup")
        for weights, by_family in shares.items()}
    for weights, mean in means.items():
        report.add(f"quality.{weights}.all_families", mean, "share")
    report.add("quality.int8_loss", means["bf16"] - means["int8"], "share")
    report.add("quality.int8_lookup_loss",
               shares["bf16"]["lookup"] - shares["int8"]["lookup"], "share")
