"""One run of the distil command, from its flags to its output folder."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import os
import pathlib
import shutil
import sys
from typing import Any, Dict, Iterator, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from training import (
    checkpoint, distil_pair, example_cache, examples, text_tokenizer,
    trainer_metrics)
from training.distributed import Processes
from training.errors import UserError
from training.example_cache import DevBatches, Encoding, Rows, Sampler
from training.trainer import Outcome, Trainer, TrainerConfig
from training.two_stage import LossWeights, SingleStage, TwoStage

# Templates may write the day; a run must not depend on it.
_TEMPLATE_DAY = datetime.datetime(2024, 7, 26)
# As of a program that a SIGTERM ends.
STOPPED = 128 + 15


class Data(NamedTuple):
    train: Rows
    sampler: Sampler
    dev: Sequence[Any]
    names: Dict[str, str]  # what the rows are of, for a resumed run to check
    counts: Dict[str, Dict[str, int]]


def run(args: argparse.Namespace) -> int:
    checkpoint.check_new(args.out)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    if args.threads:
        torch.set_num_threads(args.threads)
    processes = Processes(args.parallel, args.device)
    try:
        return _run(args, processes)
    finally:
        processes.close()


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(args: argparse.Namespace, processes: Processes) -> int:
    if args.batch_size % (args.micro_batch * processes.world):
        raise UserError(
            f"--batch-size {args.batch_size} is no multiple of --micro-batch "
            f"{args.micro_batch} times {processes.world} processes")
    out = pathlib.Path(os.path.abspath(args.out))
    folder = out.with_name(out.name + ".run")
    for flag in ("metrics", "tensorboard"):
        path = getattr(args, flag)
        if path and out in pathlib.Path(os.path.abspath(path)).parents:
            raise UserError(f"--{flag} {path}: lies in --out, which is made "
                            "when the training has ended")
    # What is quick to be wrong comes first: the pair, then the data.
    pair = _load_pair(args)
    with _run_folder(folder, processes):
        data = _load_data(args, folder, processes, pair)
        trainer = _make_trainer(args, folder, processes, pair, data)
        outcome = trainer.run()
        if not outcome.finished:
            if processes.rank == 0:
                log(f"stopped after step {outcome.step}; the same command "
                    "goes on from there")
            return STOPPED
        state = trainer.student_state()
        if processes.rank == 0:
            _write_out(args, out, folder, pair, data, state, outcome,
                       processes)
        processes.barrier()
    return 0


@contextlib.contextmanager
def _run_folder(folder: pathlib.Path, processes: Processes) -> Iterator[None]:
    """One run at a time is in a folder. One that ends before its first
    checkpoint leaves no new folder behind."""
    if processes.rank != 0:
        yield
        return
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process trains there"
                            ) from None
        try:
            yield
        except BaseException:
            if is_new and not (folder / "steps").exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _load_pair(args: argparse.Namespace) -> distil_pair.Pair:
    narrow = args.device == "cuda" and args.dtype == "bfloat16"
    pair = distil_pair.load(
        args.full, args.decode, is_two_stage=args.objective == "two_stage",
        needs_full=args.objective == "two_stage" or args.loss != "ce",
        projection=args.projection, named_map=args.kv_map,
        random_seed=args.seed if args.init == "random" else None,
        full_dtype=torch.bfloat16 if narrow else torch.float32)
    most = pair.student.model.config.max_position_embeddings
    if args.sequence_tokens > most:
        raise UserError(f"--sequence-tokens {args.sequence_tokens} is over "
                        f"max_position_embeddings {most} of {args.decode}")
    pair.student.model.gradient_checkpointing = args.gradient_checkpointing
    if pair.full is not None:
        pair.full.to(args.device)
    return pair


# ---- Data.

def _load_data(
    args: argparse.Namespace, folder: pathlib.Path, processes: Processes,
    pair: distil_pair.Pair,
) -> Data:
    source = args.decode
    if not (source / "tokenizer.json").is_file() and args.full is not None:
        source = args.full
    tokenizer = text_tokenizer.load(source, now=_TEMPLATE_DAY)
    vocab_size = pair.student.model.config.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{source}/tokenizer.json: has the id {tokenizer.vocab_size - 1}, "
            f"but vocab_size is {vocab_size}")
    end = examples.end_id(tokenizer, str(source))
    if end >= vocab_size:
        raise UserError(f"{source}/generation_config.json: eos_token_id {end} "
                        f"is not below the vocab_size {vocab_size}")
    encoding = Encoding(args.sequence_tokens, args.chat_template,
                        args.language)
    opened = {}
    for name in ("data", "dev_data"):
        path = getattr(args, name)
        if path is not None:
            opened[name] = _open_rows(
                folder, path, tokenizer, source, encoding, processes)
    rows = opened["data"][1]
    if "dev_data" in opened:
        held = opened["dev_data"][1]
        train_at, dev_at = np.arange(len(rows)), np.arange(len(held))
    else:
        held = rows
        train_at, dev_at = example_cache.split_lines(
            rows, args.dev_share, args.seed)
    rng = np.random.default_rng((args.seed, 3))
    dev_at = rng.permutation(dev_at)[:args.dev_rows]
    return Data(
        rows,
        Sampler(rows, train_at, args.seed, args.batch_size, args.micro_batch,
                processes.world, end),
        DevBatches(held, dev_at, args.micro_batch, end),
        {name: cache.name for name, (cache, _) in opened.items()},
        {name: part.counts for name, (_, part) in opened.items()})


def _open_rows(
    folder: pathlib.Path, path: pathlib.Path,
    tokenizer: text_tokenizer.TextTokenizer, source: pathlib.Path,
    encoding: Encoding, processes: Processes,
) -> Tuple[pathlib.Path, Rows]:
    cache = example_cache.cache_folder(
        folder, path, tokenizer, source, encoding)
    if processes.rank == 0:
        example_cache.build(cache, path, tokenizer, encoding, log)
    processes.barrier()
    rows = Rows(cache)
    if processes.rank == 0:
        log(_describe(path, rows.counts, encoding))
    return cache, rows


def _describe(
    path: pathlib.Path, counts: Dict[str, int], encoding: Encoding
) -> str:
    text = (f"{path}: {counts['lines']} lines, {counts['rows']} sequences, "
            f"{counts['answers']} answers of {counts['answer_tokens']} tokens; "
            f"{counts['cut']} cut at {encoding.sequence_tokens} tokens, "
            f"{counts['dropped']} left out (prompt too long)")
    if encoding.language:
        text += f", {counts['other_language']} of another language"
    return text


# ---- Training.

def _make_trainer(
    args: argparse.Namespace, folder: pathlib.Path, processes: Processes,
    pair: distil_pair.Pair, data: Data,
) -> Trainer:
    weights = LossWeights(
        ce=0.0 if args.loss == "kl" else 1.0,
        kl={"ce": 0.0, "kl": 1.0, "both": args.kl_weight}[args.loss],
        temperature=args.temperature)
    objective = (TwoStage if args.objective == "two_stage" else SingleStage)(
        pair.full, weights)
    num_steps = data.sampler.num_steps(args.epochs)
    if args.max_steps:
        num_steps = min(num_steps, args.max_steps)
    config = TrainerConfig(
        num_steps=num_steps,
        accumulation=args.batch_size // args.micro_batch // processes.world,
        peak_lr=args.lr, warmup_share=args.warmup_share,
        weight_decay=args.weight_decay, clip_norm=args.clip_norm,
        dtype=args.dtype, seed=args.seed, save_steps=args.save_every,
        save_minutes=args.save_minutes, dev_steps=args.dev_every)
    # Only what changes what is computed: a path may be spelt anew.
    same = ("objective", "init", "loss", "kl_weight", "temperature",
            "projection", "batch_size", "dev_share")
    return Trainer(
        pair.student, objective, data.sampler.batch_at, config,
        folder=folder / "steps",
        arguments={**{name: getattr(args, name) for name in same},
                   **data.names,
                   "full model": distil_pair.fingerprint(args.full),
                   "decode model": distil_pair.fingerprint(args.decode)},
        resume=args.resume == "auto", dev=data.dev,
        metrics=_metrics_path(args, folder), tensorboard=args.tensorboard,
        processes=processes, log=log)


def _metrics_path(
    args: argparse.Namespace, folder: pathlib.Path
) -> pathlib.Path:
    return args.metrics or folder / "metrics.csv"


def _write_out(
    args: argparse.Namespace, out: pathlib.Path, folder: pathlib.Path,
    pair: distil_pair.Pair, data: Data, state: Dict[str, torch.Tensor],
    outcome: Outcome, processes: Processes,
) -> None:
    metrics = _metrics_path(args, folder)
    with checkpoint.new_folder(out) as partial:
        distil_pair.write(
            partial, out.name, args.decode, pair, state,
            is_cut=args.init == "checkpoint",
            full=args.full if args.objective == "two_stage" else None)
        shutil.copyfile(metrics, partial / "metrics.csv")
        dev = [row for row in trainer_metrics.read_rows(metrics)
               if "dev_loss" in row]
        checkpoint.write_json(partial / "training.json", {
            "arguments": {
                name: str(value) if isinstance(value, pathlib.Path) else value
                for name, value in sorted(vars(args).items())},
            "torch": torch.__version__, "processes": processes.world,
            "data": data.counts, "steps": outcome.step,
            "last": outcome.last,
            "first_dev": dev[0] if dev else None})
    shutil.rmtree(folder, ignore_errors=True)
    last = outcome.last
    ending = (f", held-out loss {last['dev_loss']:.4f}"
              if "dev_loss" in last else "")
    log(f"{out}: {outcome.step} steps, {last['tokens']} answer tokens, "
        f"loss {last['loss']:.4f}{ending}")
