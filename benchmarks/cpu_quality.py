"""What int8 weights cost the shipped pair in right answers."""

import concurrent.futures
import pathlib
import statistics
import sys
from typing import Dict

import grpc

from report import Report

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import eval_server  # noqa: E402

PAIR = ROOT / "models" / "demo"


def right_answers(binary: pathlib.Path, weights: str, per_family: int
                  ) -> Dict[str, float]:
    """Exact answers of two_stage by family, lookups together beside."""
    items = eval_server.make_items(eval_server.DEFAULT_SEED, per_family)
    with eval_server.server(binary, PAIR, [f"--weights={weights}"]) as target:
        with eval_server.generated_stubs() as (pb2, pb2_grpc), \
                grpc.insecure_channel(target) as channel, \
                concurrent.futures.ThreadPoolExecutor(
                    eval_server.NUM_STREAMS) as executor:
            stub = pb2_grpc.InferenceStub(channel)
            answers = list(executor.map(
                lambda item: eval_server.ask(pb2, stub, "two_stage",
                                             item.prompt), items))
    return eval_server.exact_shares(items, answers)


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
