"""Cuts a decode model out of a full one: fewer channels, perhaps fewer layers.

    python3 -m training.prune --model DIR --hidden 0.45 --intermediate 0.45 \\
        --calibration FILE --out DIR

Attention heads and KV heads stay, so that the decode model reads the full
model's keys and values. --hidden and --intermediate are ratios to remove, of
which int((1 - ratio) * n) channels stay, or numbers of channels to keep. What
stays keeps its order. Of the layers int((1 - depth) * n) stay; the depth
strategy names them: the first, the last, the first and the last ones, or
those that change their input most (importance). The calibration file is text,
.jsonl with a "text" in each line, or token ids in .npy or .json.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from typing import List, Optional, Sequence, Tuple

import torch

from training import checkpoint, kv_map, manifest
from training.errors import Parser, UserError, main_of
from training.kv_map import KvMap
from training.model import Llama, ModelConfig
from training.prune_calibration import read_rows
from training.prune_choice import (
    DEPTH_STRATEGIES, Importance, Kept, Width, choose, choose_layers,
    count_kept, parse_ratio, parse_width)
from training.prune_cut import (
    cut, cut_config, cut_stated, cut_tensor, source_name)
from training.prune_importance import (
    Log, Measured, ModelLayers, Sample, StoredLayers, magnitude, measure,
    random_scores)
from training.safetensors_file import (
    MAX_SHARD_BYTES, Spec, TensorReader, write_tensors)

__all__ = [
    "Importance", "Kept", "Options", "choose", "cut", "measure_importance",
    "odd_width", "prune_checkpoint"]

IMPORTANCES = ("activation", "signed", "magnitude", "random")


@dataclasses.dataclass(frozen=True)
class Options:
    hidden: Width = 0.0
    intermediate: Width = 0.0
    depth: float = 0.0
    depth_strategy: str = "firstlast"
    importance: str = "activation"
    seed: int = 1  # of `random` alone
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    spill: Optional[pathlib.Path] = None  # folder for activations on disk
    max_shard_bytes: int = MAX_SHARD_BYTES

    def counts(self, config: ModelConfig) -> Tuple[int, int, int]:
        """Hidden channels, intermediate channels and layers that stay."""
        if self.importance not in IMPORTANCES:
            raise UserError(f"importance {self.importance!r} is unknown "
                            f"({', '.join(IMPORTANCES)})")
        layers = count_kept(self.depth, config.num_hidden_layers, "--depth")
        if self.depth_strategy == "firstlast" and layers == 1 and (
                config.num_hidden_layers > 1):
            raise UserError("--depth-strategy firstlast: keeps two layers at "
                            "least")
        return (count_kept(self.hidden, config.hidden_size, "--hidden"),
                count_kept(self.intermediate, config.intermediate_size,
                           "--intermediate"), layers)

    def reads_text(self) -> bool:
        """Whether calibration is needed at all."""
        return self.importance in ("activation", "signed") or (
            self.depth > 0 and self.depth_strategy == "importance")


def prune_checkpoint(
    model: pathlib.Path, out: pathlib.Path, rows: Sequence[Sequence[int]],
    options: Options, log: Log = lambda line: None,
) -> Kept:
    """`rows` are calibration samples of token ids; `out` is a new folder."""
    config, raw = checkpoint.read_config(model)
    counts = options.counts(config)
    reader = TensorReader(model)
    checkpoint.check_tensors(reader, config)
    with checkpoint.new_folder(out) as folder:
        source = StoredLayers(reader, config, options.dtype, options.device)
        kept, layers = _decide(source, rows, options, counts, log)
        pruned = cut_config(config, kept)
        checkpoint.write_json(folder / "config.json",
                              cut_stated(raw, pruned, layers))
        _write_weights(folder, reader, pruned, kept, layers, options, log)
        checkpoint.copy_small_files(model, folder)
        kind = _write_kv_map(folder, layers, config.num_hidden_layers)
        log("digests")
        manifest.write(folder, model, kept, layers, kind,
                       decode_name=out.resolve().name)
    return kept


def _decide(
    source: StoredLayers, rows: Sequence[Sequence[int]], options: Options,
    counts: Tuple[int, int, int], log: Log,
) -> Tuple[Kept, List[int]]:
    """What stays: channels and layers."""
    num_layers = source.config.num_hidden_layers
    measured = Measured(Importance(torch.zeros(0), []), [0.0] * num_layers)
    if options.reads_text():
        if not rows or not all(len(row) for row in rows):
            raise UserError("calibration needs at least one sample, and at "
                            "least one token in each")
        measured = measure(
            source, [_sample(row) for row in rows],
            options.importance == "signed", options.spill, log)
    if options.importance == "magnitude":
        importance = magnitude(source)
    elif options.importance == "random":
        importance = random_scores(source.config, options.seed)
    else:
        importance = measured.importance
    layers = choose_layers(
        options.depth_strategy, counts[2], measured.influence)
    importance.intermediate = [importance.intermediate[at] for at in layers]
    return choose(importance, counts[0], counts[1]), layers


def _sample(row: Sequence[int]) -> Sample:
    return torch.tensor([list(row)]), torch.arange(len(row))[None]


def _write_weights(
    folder: pathlib.Path, reader: TensorReader, pruned: ModelConfig,
    kept: Kept, layers: List[int], options: Options, log: Log,
) -> None:
    """Tensor by tensor, in the type and with the bits that they have."""
    log("cutting")
    specs = {
        name: Spec(shape, reader.dtype(source_name(name, layers)))
        for name, shape in checkpoint.expected_shapes(pruned).items()}
    write_tensors(
        folder, specs,
        lambda name: cut_tensor(
            name, reader.read(source_name(name, layers), None), kept),
        options.max_shard_bytes)


def _write_kv_map(
    folder: pathlib.Path, layers: List[int], num_layers: int
) -> str:
    """Where it is not the identity. Its kind."""
    if layers == list(range(num_layers)):
        return "identity"
    found = KvMap(layers)
    kv_map.write(folder, found)
    return found.kind


def measure_importance(
    model: Llama, samples: Sequence[Sample]
) -> Importance:
    """Of a model in memory."""
    return measure(ModelLayers(model), samples).importance


def odd_width(width: int, share: float) -> int:
    """The odd number next to width * share.

    Odd on purpose: published pairs have odd widths, and what is served here
    must take the same way through the server as they do.
    """
    return 2 * int(width * share / 2) + 1


def _parse_args(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = Parser(
        prog="training.prune", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=pathlib.Path, required=True, metavar="DIR")
    add("--out", type=pathlib.Path, required=True, metavar="DIR")
    add("--hidden", required=True, metavar="RATIO|WIDTH")
    add("--intermediate", required=True, metavar="RATIO|WIDTH")
    add("--depth", default="0.0", metavar="RATIO")
    add("--depth-strategy", choices=DEPTH_STRATEGIES, default="firstlast")
    add("--calibration", type=pathlib.Path, metavar="FILE")
    add("--samples", type=int, default=512)
    add("--sample-tokens", type=int, default=512)
    add("--importance", choices=IMPORTANCES, default="activation",
        help="signed: as the paper's own code, where means over tokens keep "
        "their sign; magnitude and random are baselines")
    add("--seed", type=int, default=1, help="of --importance random")
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the calibration run; the weights keep theirs")
    add("--spill", type=pathlib.Path, metavar="DIR",
        help="keep activations in a temporary file there, not in memory")
    return parser.parse_args(arguments)


def _options(args: argparse.Namespace) -> Options:
    for flag in ("samples", "sample_tokens"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1")
    if not 0 <= args.seed < 1 << 63:
        raise UserError("--seed must be a whole number below 2^63")
    if args.spill is not None and not args.spill.is_dir():
        raise UserError(f"--spill {args.spill}: is no directory")
    if args.device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device {args.device}: is not cpu or cuda")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: there is none")
    return Options(
        hidden=parse_width(args.hidden, "--hidden"),
        intermediate=parse_width(args.intermediate, "--intermediate"),
        depth=parse_ratio(args.depth, "--depth"),
        depth_strategy=args.depth_strategy, importance=args.importance,
        seed=args.seed, device=args.device, dtype=getattr(torch, args.dtype),
        spill=args.spill)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def main(arguments: Optional[List[str]] = None) -> None:
    args = _parse_args(arguments)
    options = _options(args)
    checkpoint.check_new(args.out)
    config, _ = checkpoint.read_config(args.model)
    options.counts(config)
    rows: List[List[int]] = []
    if options.reads_text():
        if args.calibration is None:
            raise UserError("--calibration is needed to measure importance")
        rows = read_rows(args.calibration, args.model, config.vocab_size,
                         args.samples, args.sample_tokens)
        if len(rows) < args.samples:
            print(f"note: {args.calibration} gives {len(rows)} of "
                  f"{args.samples} samples", file=sys.stderr)
    kept = prune_checkpoint(args.model, args.out, rows, options, _progress)
    _progress("")
    print(f"{args.out}: hidden {config.hidden_size} -> {len(kept.hidden)}, "
          f"intermediate {config.intermediate_size} -> "
          f"{len(kept.intermediate[0])}, layers {config.num_hidden_layers} -> "
          f"{len(kept.intermediate)}")


if __name__ == "__main__":
    main_of(main)
