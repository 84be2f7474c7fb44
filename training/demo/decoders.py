"""Trains a decoder of the demo: the pair's, or one that it is judged by.

two_stage: behind the full model, as it is served. pruned: the same cut,
reading the prompt itself. scratch: the same widths from random weights, also
reading by itself. All see the same answers in the same order.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Dict, List, Optional

from training import checkpoint, manifest, trainer_metrics
from training.demo.batches import (
    PARTS, Scenes, fact_batch, parts_per_process)
from training.distributed import Processes
from training.model import Llama, init_weights
from training.tokenizer import Tokenizer
from training.trainer import Outcome, Trainer, TrainerConfig
from training.trainer_metrics import Log
from training.two_stage import (
    Batch, LossWeights, SingleStage, Student, TwoStage)

KINDS = ("two_stage", "pruned", "scratch")
PARTS_PER_FACTS = 5
FACT_SUBJECTS = 4
LONGEST_FACT = 8
DEV_PARTS = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    kind: str
    num_steps: int
    peak_lr: float
    seed: int = 1
    kl: float = 1.0   # beside the cross-entropy, from the full model
    dev_steps: int = 100

    def name(self) -> str:
        return f"{self.kind}-{self.peak_lr:g}"


class Mix:
    """Scenes, and one part in so many of facts of random tokens."""

    def __init__(
        self, tokenizer: Tokenizer, seed: int, world: int = 1
    ) -> None:
        """`world`: processes, which share each batch."""
        self._world = world
        self._scenes = Scenes(tokenizer, f"{seed} decoder")
        self._vocab_size = tokenizer.vocab_size
        self._seed = seed

    def __call__(self, step: int, micro: int, rank: int) -> Batch:
        number = step * PARTS + micro * self._world + rank
        if number % PARTS_PER_FACTS == 0:
            return fact_batch((self._seed, 4, number), self._vocab_size,
                              FACT_SUBJECTS, LONGEST_FACT)
        return self._scenes(number)


def development(tokenizer: Tokenizer, seed: int) -> List[Batch]:
    """Held-out entities and forms, from another seed than any test."""
    scenes = Scenes(tokenizer, f"{seed} development", held_out=True)
    return [scenes(number) for number in range(DEV_PARTS)]


def train_decoder(
    plan: Plan, full_folder: pathlib.Path, cut_folder: pathlib.Path,
    out: pathlib.Path, run: pathlib.Path, log: Log,
    processes: Optional[Processes] = None,
) -> Outcome:
    """From the cut at `cut_folder` (its widths alone for scratch) to a
    checkpoint at `out`; goes on at the last checkpoint in `run`."""
    full, _ = checkpoint.load_checkpoint(full_folder)
    model, stated = checkpoint.load_checkpoint(cut_folder)
    if plan.kind == "scratch":
        init_weights(model, plan.seed)
    tokenizer = Tokenizer.load(full_folder)
    world = processes.world if processes else 1
    weights = LossWeights(1.0, plan.kl)
    objective = (TwoStage(full, weights) if plan.kind == "two_stage"
                 else SingleStage(full, weights))
    trainer = Trainer(
        Student(model), objective,
        Mix(tokenizer, plan.seed, world),
        TrainerConfig(
            num_steps=plan.num_steps, accumulation=parts_per_process(world),
            peak_lr=plan.peak_lr,
            warmup_share=0.03, decay_share=0.5, final_lr_share=0.02,
            weight_decay=0.01, betas=(0.9, 0.98), seed=plan.seed,
            save_minutes=3.0, dev_steps=plan.dev_steps, log_steps=50),
        folder=run, dev=development(tokenizer, plan.seed),
        metrics=run.with_suffix(".csv"), log=log, processes=processes,
        arguments={**dataclasses.asdict(plan),
                   "full_model": checkpoint.sha256_of(
                       full_folder / "model.safetensors")})
    outcome = trainer.run()
    if outcome.finished and (processes is None or processes.rank == 0):
        save(model, stated, cut_folder, out, plan)
    return outcome


def save(
    model: Llama, stated: Dict[str, Any], cut_folder: pathlib.Path,
    out: pathlib.Path, plan: Plan,
) -> None:
    checkpoint.save_checkpoint(out, model, stated=stated)
    checkpoint.copy_files(cut_folder, out, (
        "generation_config.json", *checkpoint.TOKENIZER_FILES))
    if plan.kind == "scratch":
        return  # was cut from nothing
    checkpoint.copy_files(cut_folder, out, (manifest.FILE_NAME,))
    manifest.refresh(out)


def read_curve(run: pathlib.Path) -> List[float]:
    """The development curve of a run, in the order of its steps."""
    return [row["dev_exact"]
            for row in trainer_metrics.read_rows(run.with_suffix(".csv"))
            if "dev_exact" in row]
