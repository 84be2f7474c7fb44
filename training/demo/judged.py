"""Trains the decoders that the demo pair is judged by.

    python3 -m training.demo.judged --pair models/demo

Each kind (two_stage, pruned alone, scratch; see decoders.py) at three learning
rates on the same answers, the best of which on the development split is taken;
then that one for twice as many steps, to show what more training would give;
then two_stage and pruned at other widths. What is done is skipped and an
interrupted run goes on, so that two processes, each with its part of --kinds,
may share the work. The pair must be the one in --work, made by the recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
from typing import Any, Dict, List, Optional

import torch

from training import checkpoint
from training.demo import decoders, recipe
from training.errors import Parser, UserError, main_of
from training.tokenizer import Tokenizer

LEARNING_RATES = (1e-3, 3e-3, 8e-3)
RATIOS = (0.45, 0.6, 0.8)  # of the channels removed, beside the pair's own


class Runs:
    """All runs of a work folder."""

    def __init__(self, work: pathlib.Path, plain: recipe.Recipe) -> None:
        self.work = work
        self.recipe = plain
        self.digest = checkpoint.sha256_of(
            work / "full" / "model.safetensors")[:8]
        self.folder = work / "judged"
        self.folder.mkdir(parents=True, exist_ok=True)

    def plan(self, kind: str, lr: float, num_steps: Optional[int] = None
             ) -> decoders.Plan:
        return decoders.Plan(kind, num_steps or self.recipe.decoder_steps, lr,
                             self.recipe.seed)

    def name(self, plan: decoders.Plan, cut: pathlib.Path) -> str:
        """Runs behind another full model are other runs."""
        return f"{self.digest}-{cut.name}-{plan.name()}-{plan.num_steps}"

    def train(self, plan: decoders.Plan, cut: pathlib.Path) -> Dict[str, Any]:
        """The run's record; trained where it is not yet."""
        name = self.name(plan, cut)
        record = self.folder / f"{name}.json"
        if record.exists():
            return dict(checkpoint.read_json(record))
        recipe.log(f"run {name}")
        out, run = self.folder / name, self.folder / f"{name}.run"
        outcome = decoders.train_decoder(
            plan, self.work / "full", cut, out, run, recipe.log)
        if not outcome.finished:
            raise UserError(f"{name}: stopped at step {outcome.step}; the "
                            "same command goes on")
        checkpoint.write_json(record, {
            **dataclasses.asdict(plan), "name": name,
            "dev_exact": outcome.last["dev_exact"],
            "dev_loss": outcome.last["dev_loss"],
            "answer_tokens": outcome.last["tokens"],
            "seconds": round(outcome.last["seconds"]),
            "curve": decoders.read_curve(run)})
        return dict(checkpoint.read_json(record))

    def cut(self, share: float) -> pathlib.Path:
        out = self.work / f"cut-{self.digest}-{share:g}"
        if not out.exists():
            recipe.cut_full(self.work, self.recipe,
                            Tokenizer.load(self.work / "full"), share, out)
        return out

    def best(self, kind: str) -> Dict[str, Any]:
        """Of the three learning rates; as exact, then by the loss."""
        runs = [self.train(self.plan(kind, lr), self.work / "cut")
                for lr in LEARNING_RATES]
        return max(runs, key=lambda run: (run["dev_exact"], -run["dev_loss"]))


def judge_kinds(runs: Runs, kinds: List[str]) -> None:
    for kind in kinds:
        chosen = runs.best(kind)
        runs.train(runs.plan(kind, chosen["peak_lr"],
                             2 * runs.recipe.decoder_steps),
                   runs.work / "cut")
        if kind == "scratch":
            continue
        for share in RATIOS:
            runs.train(runs.plan(kind, chosen["peak_lr"]), runs.cut(share))


def collect(runs: Runs, pair: pathlib.Path) -> None:
    """The chosen ones into the pair's folder, with the record of all."""
    out = pair / "judged"
    shutil.rmtree(out, ignore_errors=True)
    record: Dict[str, Any] = {"runs": [], "chosen": {}}
    for kind in decoders.KINDS:
        chosen = runs.best(kind)
        twice = runs.train(
            runs.plan(kind, chosen["peak_lr"], 2 * runs.recipe.decoder_steps),
            runs.work / "cut")
        record["runs"] += [
            runs.train(runs.plan(kind, lr), runs.work / "cut")
            for lr in LEARNING_RATES] + [twice]
        record["chosen"][kind] = {
            "peak_lr": chosen["peak_lr"], "dev_exact": chosen["dev_exact"],
            "gain_of_twice_the_steps": twice["dev_exact"] - chosen["dev_exact"]}
        if kind != "two_stage":
            shutil.copytree(runs.folder / chosen["name"], out / kind)
        if kind == "scratch":
            continue
        for share in RATIOS:
            plan = runs.plan(kind, chosen["peak_lr"])
            run = runs.train(plan, runs.cut(share))
            record["runs"].append(run)
            shutil.copytree(
                runs.folder / run["name"], out / "ratios" / f"{share:g}" / (
                    "decode" if kind == "two_stage" else kind))
    checkpoint.write_json(out / "training.json", record)


def main() -> None:
    parser = Parser(
        prog="training.demo.judged", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path,
                        default=pathlib.Path("build/demo_pair"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", choices=decoders.KINDS,
                        help="train these alone, and collect nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stated = args.pair / "training.json"
    if not (args.work / "cut").exists():
        raise UserError(f"{args.work}: holds no finished recipe; run "
                        "./dev train first")
    runs = Runs(args.work, recipe.Recipe(
        **json.loads(stated.read_text(encoding="utf-8"))["recipe"]))
    judge_kinds(runs, args.kinds or list(decoders.KINDS))
    if not args.kinds:
        collect(runs, args.pair)


if __name__ == "__main__":
    main_of(main)
