"""Trains the decoders that the demo pair is judged by.

    python3 -m training.demo.judged --pair models/demo

Each kind (two_stage, pruned alone, scratch; see decoders.py) at three learning
rates on the same answers, the best of which on the development split is taken;
then that one for twice as many steps, to show what more training would give;
then two_stage and pruned at other widths. All of it is in PAIR/judged: the
record of every run in training.json, the best checkpoint of each kind beside.
What is done is skipped and an interrupted run goes on, so that processes, each
with its part of --kinds, may share the work, now or later. The pair's own full
model is all that it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import pathlib
import shutil
from typing import Any, Dict, Iterator, List, Optional

import torch

from training import checkpoint
from training.demo import decoders, recipe
from training.errors import UserError, main_of
from training.tokenizer import Tokenizer

LEARNING_RATES = (1e-3, 3e-3, 8e-3)
RATIOS = (0.45, 0.6, 0.8)  # of the channels removed, beside the pair's own

Record = Dict[str, Any]


class Runs:
    """All runs behind one full model, done and to be done."""

    def __init__(self, pair: pathlib.Path, work: pathlib.Path) -> None:
        stated = json.loads(
            (pair / "training.json").read_text(encoding="utf-8"))
        self.recipe = recipe.Recipe(**stated["recipe"])
        self.digest = checkpoint.sha256_of(
            pair / "full" / "model.safetensors")[:8]
        self.out = pair / "judged"
        # Runs behind another full model are other runs.
        self.work = work / f"judged-{self.digest}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(exist_ok=True)
        if not (self.work / "full").exists():
            shutil.copytree(pair / "full", self.work / "full")

    # ---- The record.

    @contextlib.contextmanager
    def _record(self) -> Iterator[Dict[str, Any]]:
        """training.json, to be changed by one process at a time."""
        with (self.work / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.out / "training.json"
            record = (checkpoint.read_json(path) if path.exists()
                      else {"full": self.digest, "runs": {}, "chosen": {}})
            if record["full"] != self.digest:
                raise UserError(f"{path}: is of another full model; remove "
                                f"{self.out} to begin anew")
            yield record
            checkpoint.write_json(path, record)

    def _add(self, run: Record, folder: pathlib.Path) -> None:
        """Keeps the run's record, and its checkpoint where it is wanted."""
        with self._record() as record:
            record["runs"][run["name"]] = run
            at = self._place(run)
            best = self._best_of(record, run["kind"])
            if run["removed"] == self.recipe.cut:
                if best is None or best["name"] != run["name"]:
                    return
                twice = record["runs"].get(self.name(
                    self.plan(run["kind"], run["peak_lr"], True), run["removed"]))
                record["chosen"][run["kind"]] = {
                    "peak_lr": run["peak_lr"], "dev_exact": run["dev_exact"],
                    **_gain(run, twice)}
            shutil.rmtree(at, ignore_errors=True)
            shutil.copytree(folder, at)

    def _place(self, run: Record) -> pathlib.Path:
        if run["removed"] == self.recipe.cut:
            return self.out / run["kind"]
        return self.out / "ratios" / f"{run['removed']:g}" / (
            "decode" if run["kind"] == "two_stage" else run["kind"])

    def _best_of(self, record: Dict[str, Any], kind: str) -> Optional[Record]:
        """Of the learning rates tried so far; as exact, then by the loss."""
        tried = [record["runs"].get(self.name(self.plan(kind, lr),
                                              self.recipe.cut))
                 for lr in LEARNING_RATES]
        return max((run for run in tried if run), default=None,
                   key=lambda run: (run["dev_exact"], -run["dev_loss"]))

    # ---- Runs.

    def plan(self, kind: str, lr: float, twice: bool = False
             ) -> decoders.Plan:
        return decoders.Plan(kind, self.recipe.decoder_steps * (1 + twice), lr,
                             self.recipe.seed)

    def name(self, plan: decoders.Plan, removed: float) -> str:
        return f"{removed:g}-{plan.name()}-{plan.num_steps}"

    def train(self, plan: decoders.Plan, removed: float) -> Record:
        """The run's record; trained where it is not yet."""
        name = self.name(plan, removed)
        with self._record() as record:
            if name in record["runs"]:
                return dict(record["runs"][name])
        recipe.log(f"run {name}")
        out, run = self.work / name, self.work / f"{name}.run"
        outcome = decoders.train_decoder(
            plan, self.work / "full", self._cut(removed), out, run, recipe.log)
        if not outcome.finished:
            raise UserError(f"{name}: stopped at step {outcome.step}; the "
                            "same command goes on")
        done = {
            **dataclasses.asdict(plan), "name": name, "removed": removed,
            "dev_exact": outcome.last["dev_exact"],
            "dev_loss": outcome.last["dev_loss"],
            "answer_tokens": outcome.last["tokens"],
            "seconds": round(outcome.last["seconds"]),
            "curve": decoders.read_curve(run)}
        self._add(done, out)
        return done

    def _cut(self, removed: float) -> pathlib.Path:
        out = self.work / f"cut-{removed:g}"
        if not out.exists():
            recipe.cut_full(self.work, self.recipe,
                            Tokenizer.load(self.work / "full"), removed, out)
        return out

    def train_kind(self, kind: str) -> None:
        cut = self.recipe.cut
        for lr in LEARNING_RATES:
            self.train(self.plan(kind, lr), cut)
        with self._record() as record:
            chosen = self._best_of(record, kind)
        if chosen is None:
            raise UserError(f"{kind}: no learning rate was tried")
        lr = chosen["peak_lr"]
        twice = self.train(self.plan(kind, lr, True), cut)
        with self._record() as record:
            record["chosen"][kind].update(_gain(chosen, twice))
        if kind == "scratch":
            return
        for removed in RATIOS:
            self.train(self.plan(kind, lr), removed)


def _gain(run: Record, twice: Optional[Record]) -> Dict[str, float]:
    if twice is None:
        return {}
    return {"gain_of_twice_the_steps": twice["dev_exact"] - run["dev_exact"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="training.demo.judged", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path,
                        default=pathlib.Path("build/demo_pair"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", choices=decoders.KINDS,
                        default=list(decoders.KINDS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for needed in ("training.json", "full/model.safetensors"):
        if not (args.pair / needed).exists():
            raise UserError(f"{args.pair}: has no {needed}; it is no pair that "
                            "training.demo.recipe made")
    if "recipe" not in checkpoint.read_json(args.pair / "training.json"):
        raise UserError(f"{args.pair / 'training.json'}: is not of "
                        "training.demo.recipe")
    runs = Runs(args.pair, args.work)
    for kind in args.kinds:
        runs.train_kind(kind)


if __name__ == "__main__":
    main_of(main)
