"""Makes the pair that ships, from a seed, in one command.

    python3 -m training.demo.recipe --out models/demo

Stages: tokenizer, full model, pruning, distillation. Each leaves its result
in --work and is skipped when that is there; an interrupted run goes on at its
last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Dict, List

import torch

from training import checkpoint, prune
from training.demo import copying, decoders, world
from training.demo.batches import (
    PARTS, Scenes, Sizes, copying_batch, encode_scene, fact_batch,
    parts_per_process)
from training.demo.scene import format_prompt
from training.distributed import Processes
from training.errors import Parser, main_of
from training.model import Llama, ModelConfig, count_parameters, init_weights
from training.tokenizer import Tokenizer, train_tokenizer
from training.trainer import Outcome, Trainer, TrainerConfig
from training.two_stage import Batch, LossWeights, SingleStage, Student

VOCAB_SIZE = 1536
MAX_SIZE = 8
NUM_CALIBRATION_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Recipe:
    seed: int = 1
    hidden_size: int = 192
    intermediate_size: int = 384
    num_layers: int = 5
    num_heads: int = 6
    copying_steps: int = 60
    facts_steps: int = 740    # after copying
    full_steps: int = 4200    # all three parts
    full_lr: float = 2e-3
    cut: float = 0.7          # share of the channels removed
    decoder_steps: int = 2500
    decoder_lr: float = 3e-3

    def full_config(self, vocab_size: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=vocab_size, hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads, head_dim=32,
            rope_theta=500000.0)


class Lessons:
    """What the full model reads, step by step: copying, then facts of random
    tokens about more and more subjects, then passages that grow; one part in
    eight stays with facts."""

    def __init__(
        self, recipe: Recipe, tokenizer: Tokenizer, world: int = 1
    ) -> None:
        """`world`: processes, which share each batch."""
        self._recipe = recipe
        self._world = world
        self._vocab_size = tokenizer.vocab_size
        language_steps = recipe.full_steps - self._before_language()
        self._scenes = Scenes(tokenizer, f"{recipe.seed} full", Sizes(
            2, MAX_SIZE, max(1, language_steps // (2 * MAX_SIZE))))

    def _before_language(self) -> int:
        return self._recipe.copying_steps + self._recipe.facts_steps

    def __call__(self, step: int, micro: int, rank: int) -> Batch:
        recipe = self._recipe
        part = micro * self._world + rank
        seed = (recipe.seed, 2, step, part)
        if step < recipe.copying_steps:
            return copying_batch(seed, self._vocab_size)
        if step < self._before_language():
            done = (step - recipe.copying_steps) / recipe.facts_steps
            subjects = 2 + int(max(0.0, done - 0.3) / 0.7 * (MAX_SIZE - 2))
            return fact_batch(seed, self._vocab_size, subjects)
        number = (step - self._before_language()) * PARTS + part
        if number % 8 == 0:
            return fact_batch(seed, self._vocab_size, MAX_SIZE)
        return self._scenes(number)


def corpus(seed: int, num_scenes: int) -> List[str]:
    """Training text for the tokenizer: every family alike."""
    rng = random.Random(f"{seed} corpus")
    texts = []
    for _ in range(num_scenes):
        scene = world.make_scene(
            rng, rng.choice(world.FAMILIES), rng.randint(1, MAX_SIZE), False)
        asked = [format_prompt("", question.text) + " " + question.answer
                 for question in scene.questions]
        texts.append("\n".join([scene.passage] + asked))
    return texts


def make_tokenizer(work: pathlib.Path, recipe: Recipe) -> Tokenizer:
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        tokenizer = train_tokenizer(corpus(recipe.seed, 2500), VOCAB_SIZE)
        tokenizer.save(folder, ModelConfig.max_position_embeddings)
    return Tokenizer.load(folder)


def train_full(
    work: pathlib.Path, recipe: Recipe, tokenizer: Tokenizer,
    processes: Processes,
) -> Outcome:
    model = Llama(recipe.full_config(tokenizer.vocab_size))
    init_weights(model, recipe.seed)
    copying.seed_copying(model)
    log(f"full model: {count_parameters(model)} parameters")
    outcome = Trainer(
        Student(model), SingleStage(None, LossWeights(1.0)),
        Lessons(recipe, tokenizer, processes.world),
        TrainerConfig(
            num_steps=recipe.full_steps,
            accumulation=parts_per_process(processes.world),
            peak_lr=recipe.full_lr, warmup_share=0.01, decay_share=0.3,
            final_lr_share=0.05, weight_decay=0.01, betas=(0.9, 0.98),
            seed=recipe.seed,
            save_minutes=3.0, dev_steps=200, log_steps=50),
        folder=work / "full.run", metrics=work / "full.csv",
        dev=decoders.development(tokenizer, recipe.seed),
        arguments=dataclasses.asdict(recipe), processes=processes,
        log=log).run()
    if outcome.finished and processes.rank == 0:
        checkpoint.save_checkpoint(
            work / "full", model, tokenizer.bos_id, tokenizer.eos_id)
        tokenizer.save(
            work / "full", model.config.max_position_embeddings)
    return outcome


def calibration(tokenizer: Tokenizer, seed: int) -> List[List[int]]:
    rng = random.Random(f"{seed} calibration")
    rows: List[List[int]] = []
    while len(rows) < NUM_CALIBRATION_ROWS:
        scene = world.make_scene(
            rng, rng.choice(world.FAMILIES), MAX_SIZE, False)
        if scene.questions:  # as nearly all have
            rows.append(encode_scene(tokenizer, scene, 6).ids)
    return rows


def cut_full(
    work: pathlib.Path, recipe: Recipe, tokenizer: Tokenizer,
    share: float, out: pathlib.Path,
) -> None:
    """The kept widths are odd, as those of published pairs are."""
    def odd(width: int) -> int:
        return prune.odd_width(width, 1.0 - share)

    prune.prune_checkpoint(
        work / "full", out, calibration(tokenizer, recipe.seed),
        prune.Options(odd(recipe.hidden_size), odd(recipe.intermediate_size)),
        log)


def write_pair(work: pathlib.Path, out: pathlib.Path, recipe: Recipe,
               num_processes: int, stages: Dict[str, Any]) -> None:
    for name in ("full", "decode"):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(work / name, out / name)
    checkpoint.write_json(out / "training.json", {
        "recipe": dataclasses.asdict(recipe), "torch": torch.__version__,
        "processes": num_processes, "threads": torch.get_num_threads(),
        "stages": stages})


def log(line: str) -> None:
    print(time.strftime("%H:%M:%S ", time.gmtime()) + line, flush=True)


def parse_args() -> argparse.Namespace:
    parser = Parser(prog="training.demo.recipe", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path,
                        default=pathlib.Path("build/demo_pair"))
    parser.add_argument("--processes", type=int,
                        default=min(2, len(os.sched_getaffinity(0))),
                        help="1, 2 or 4, which share each batch")
    parser.add_argument("--threads", type=int, default=1,
                        help="of a single process")
    for field in dataclasses.fields(Recipe):
        parser.add_argument("--" + field.name.replace("_", "-"),
                            type=type(field.default), default=field.default)
    return parser.parse_args()


def run_all(args: argparse.Namespace, recipe: Recipe, processes: Processes
            ) -> int:
    """1 where a signal stopped a stage: the same command goes on."""
    work, first = args.work, processes.rank == 0
    if first:
        work.mkdir(parents=True, exist_ok=True)
        make_tokenizer(work, recipe)
    processes.barrier()
    tokenizer = make_tokenizer(work, recipe)
    outcomes = {"full": train_full(work, recipe, tokenizer, processes)}
    if not outcomes["full"].finished:
        return 1
    if first and not (work / "cut").exists():
        cut_full(work, recipe, tokenizer, recipe.cut, work / "cut")
    processes.barrier()
    outcomes["decode"] = decoders.train_decoder(
        decoders.Plan("two_stage", recipe.decoder_steps, recipe.decoder_lr,
                      recipe.seed),
        work / "full", work / "cut", work / "decode", work / "decode.run",
        log, processes)
    if not outcomes["decode"].finished:
        return 1
    if first:
        write_pair(work, args.out, recipe, processes.world, {
            name: {"steps": outcome.step, **{
                key: outcome.last[key]
                for key in ("tokens", "seconds", "loss", "dev_exact")
                if key in outcome.last}}
            for name, outcome in outcomes.items()})
    return 0


def start_processes(count: int) -> int:
    """This program once more, `count` times, as one group. On few cores that
    is nearly `count` times as fast; threads of one process are not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [subprocess.Popen(
        [sys.executable, "-B", "-m", "training.demo.recipe", *sys.argv[1:]],
        env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count),
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
             "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
                for rank in range(count)]

    def pass_on(number: int, _frame: Any) -> None:
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    codes = [child.wait() for child in children]
    return next((code for code in codes if code != 0), 0)


def main() -> int:
    args = parse_args()
    if args.processes > 1 and "RANK" not in os.environ:
        return start_processes(args.processes)
    processes = Processes("ddp" if args.processes > 1 else "none")
    torch.set_num_threads(1 if args.processes > 1 else args.threads)
    recipe = Recipe(**{field.name: getattr(args, field.name)
                       for field in dataclasses.fields(Recipe)})
    try:
        return run_all(args, recipe, processes)
    finally:
        processes.close()


if __name__ == "__main__":
    main_of(main)
