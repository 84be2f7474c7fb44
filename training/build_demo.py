"""Makes the pair that ships, from a seed, in one command.

    python3 -m training.build_demo --out models/demo

Stages: tokenizer, full model (copying, then language), pruning, distillation,
scores. Each leaves its result in --work and is skipped when that is there, so
an interrupted run goes on at its last checkpoint.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import time
from typing import Callable, List, Tuple

import torch

from training import (
    checkpoint, data, distil_demo, manifest, prune, train, world)
from training.demo import copying
from training.demo.scene import format_prompt
from training.model import Llama, ModelConfig, count_parameters, init_weights
from training.tokenizer import Tokenizer, train_tokenizer

VOCAB_SIZE = 2048
MAX_SUBJECTS = 8
MAX_LEVEL = 8
PRUNED_SHARE = 0.55
NUM_CALIBRATION_ROWS = 64


def full_config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=256,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        head_dim=32, rope_theta=500000.0)


def corpus(seed: int, num_scenes: int) -> List[str]:
    """Training text for the tokenizer: every family alike."""
    rng = random.Random(f"{seed} corpus")
    texts = []
    for _ in range(num_scenes):
        scene = world.make_scene(
            rng, rng.choice(world.FAMILIES), rng.randint(1, MAX_LEVEL), False)
        asked = [format_prompt("", question.text) + " " + question.answer
                 for question in scene.questions]
        texts.append("\n".join([scene.passage] + asked))
    return texts


def make_tokenizer(work: pathlib.Path, seed: int) -> Tokenizer:
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        tokenizer = train_tokenizer(corpus(seed, 2500), VOCAB_SIZE)
        tokenizer.save(folder, full_config(VOCAB_SIZE).max_position_embeddings)
    return Tokenizer.load(folder)


def train_full(
    work: pathlib.Path, tokenizer: Tokenizer, args: argparse.Namespace
) -> List[train.State]:
    """The states after each stage; they share the one model."""
    model = Llama(full_config(tokenizer.vocab_size))
    init_weights(model, args.seed)
    copying.seed_copying(model)
    states = []
    for name, run in (
        ("warm_up", lambda state, path: train.warm_up(
            state, args.seed, 0, args.warm_up_steps, 0.9, path, log)),
        ("binding", lambda state, path: train.learn_binding(
            state, args.seed, 0, args.binding_steps, MAX_SUBJECTS, path, log)),
        ("language", lambda state, path: train.learn_language(
            state, tokenizer, args.seed, train.Schedule(args.language_steps),
            path, log, max_level=MAX_LEVEL)),
    ):
        states.append(run_stage(work / f"{name}.pt", model, run))
    return states


def run_stage(
    path: pathlib.Path, model: Llama,
    run: Callable[[train.State, pathlib.Path], None],
) -> train.State:
    """Runs a stage from its last checkpoint, if it has one."""
    state = train.new_state(model)
    if path.exists():
        state.load(path)
    if not state.finished:
        run(state, path)
        state.finished = True
        state.save(path)
    return state


def calibration_samples(
    tokenizer: Tokenizer, seed: int
) -> List[Tuple[torch.Tensor, torch.Tensor]]:
    rng = random.Random(f"{seed} calibration")
    samples = []
    for _ in range(NUM_CALIBRATION_ROWS):
        scene = world.make_scene(
            rng, rng.choice(world.FAMILIES), MAX_LEVEL, False)
        ids = torch.tensor([data.encode_scene(tokenizer, scene, 6)[0]])
        samples.append((ids, torch.arange(ids.shape[1])[None]))
    return samples


def prune_full(full: Llama, tokenizer: Tokenizer, seed: int
               ) -> Tuple[Llama, prune.Kept]:
    config = full.config
    importance = prune.measure_importance(
        full, calibration_samples(tokenizer, seed))
    kept = prune.choose(
        importance, prune.odd_width(config.hidden_size, PRUNED_SHARE),
        prune.odd_width(config.intermediate_size, PRUNED_SHARE))
    return prune.cut(full, kept), kept


def write_pair(
    out: pathlib.Path, tokenizer: Tokenizer, full: Llama, pruned: Llama,
    kept: prune.Kept,
) -> None:
    for name, model in (("full", full), ("decode", pruned)):
        checkpoint.save_checkpoint(
            out / name, model, tokenizer.bos_id, tokenizer.eos_id)
        tokenizer.save(out / name, model.config.max_position_embeddings)
    manifest.write(
        out / "decode", out / "full", kept,
        list(range(full.config.num_hidden_layers)), "identity")


def write_training(
    out: pathlib.Path, seed: int, full: Llama, pruned: Llama,
    states: List[train.State],
) -> None:
    """training.json: what it took, for the model card."""
    names = ("copying", "binding", "language", "distillation")
    checkpoint.write_json(out / "training.json", {
        "seed": seed,
        **{name: {"parameters": count_parameters(model),
                  "hidden_size": model.config.hidden_size,
                  "intermediate_size": model.config.intermediate_size,
                  "layers": model.config.num_hidden_layers,
                  "heads": model.config.num_attention_heads,
                  "head_dim": model.config.head_dim,
                  "vocabulary": model.config.vocab_size}
           for name, model in (("full", full), ("decode", pruned))},
        "stages": [{"name": name, "steps": state.step, "tokens": state.tokens,
                    "seconds": round(state.seconds)}
                   for name, state in zip(names, states)],
    })


def log(line: str) -> None:
    print(time.strftime("%H:%M:%S ", time.gmtime()) + line, flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path,
                        default=pathlib.Path("build/demo_pair"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm_up_steps", type=int, default=400)
    parser.add_argument("--binding_steps", type=int, default=1500)
    parser.add_argument("--language_steps", type=int, default=4000)
    parser.add_argument("--distil_steps", type=int, default=1300)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(args.work, args.seed)
    states = train_full(args.work, tokenizer, args)
    full = states[-1].model.eval()
    log(f"full model: {count_parameters(full)} parameters")
    pruned, kept = prune_full(full, tokenizer, args.seed)
    log(f"pruned model: {count_parameters(pruned)} parameters")
    states.append(run_stage(
        args.work / "distil.pt", pruned,
        lambda state, path: distil_demo.distil(
            full, state, tokenizer, args.seed,
            train.Schedule(args.distil_steps), MAX_LEVEL, path, log)))
    write_pair(args.out, tokenizer, full, pruned, kept)
    write_training(args.out, args.seed, full, pruned, states)


if __name__ == "__main__":
    main()
