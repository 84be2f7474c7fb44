"""Trains the decode model of a pair: to go on from the full model's KV.

    python3 -m training.distil --full FULL --decode PRUNED
        --data FILE.jsonl --out OUT

The full model is frozen and reads the prompts; the decode model learns the
answers' tokens. OUT becomes a checkpoint like PRUNED. Until then the run
lives in OUT.run: the same command goes on after a kill, exactly. See
training/examples.py for the data; a sequence over --sequence-tokens loses its
end, one whose prompt alone is as long is left out.
"""

from __future__ import annotations

import argparse
import math
import pathlib
from typing import Any, Callable, List, Optional

from training import distil_run
from training.distributed import KINDS
from training.errors import Parser, UserError, main_of
from training.trainer import DTYPES

_MOST = 10 ** 9  # of what is counted

def _number(
    kind: Callable[[str], Any], least: float, most: float = math.inf,
    name: str = "number",
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or value == math.inf:
            limit = f" of at least {least}" if most == math.inf else (
                f" from {least} to {most}")
            raise argparse.ArgumentTypeError(
                f"{text!r} is no {name}{limit}")
        return value

    return parse


_COUNT = _number(int, 1, _MOST, name="whole number")
_FROM_ZERO = _number(int, 0, _MOST, name="whole number")
_POSITIVE = _number(float, 1e-12)
_NOT_NEGATIVE = _number(float, 0)
_SHARE = _number(float, 0, 1)


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = Parser(prog="training.distil", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_what(parser.add_argument_group("what is trained"))
    _add_how(parser.add_argument_group("how"))
    _add_run(parser.add_argument_group("the run"))
    args = parser.parse_args(argv)
    if args.full is None and (
            args.objective == "two_stage" or args.loss != "ce"):
        raise UserError("--full is needed but for --objective single with "
                        "--loss ce")
    if args.projection and args.objective != "two_stage":
        raise UserError("--projection goes with --objective two_stage")
    if args.dev_data is not None and args.dev_share:
        raise UserError("--dev-share and --dev-data exclude each other")
    return args


def _add_what(group: Any) -> None:
    add, path = group.add_argument, pathlib.Path
    add("--full", type=path, metavar="DIR", help="frozen; reads the prompts")
    add("--decode", type=path, metavar="DIR", required=True,
        help="where the trained model starts")
    add("--data", type=path, metavar="FILE", required=True, help="JSON lines")
    add("--out", type=path, metavar="DIR", required=True)
    add("--objective", choices=("two_stage", "single"), default="two_stage",
        help="single: the decode model reads the prompts itself")
    add("--init", choices=("checkpoint", "random"), default="checkpoint",
        help="random: from scratch, with the config of --decode")
    add("--loss", choices=("ce", "kl", "both"), default="ce",
        help="cross entropy with the answers, KL to the full model, or "
        "ce + kl_weight * kl")
    add("--kl-weight", type=_NOT_NEGATIVE, default=1.0)
    add("--temperature", type=_POSITIVE, default=1.0, help="of the KL")
    add("--projection", action="store_true",
        help="train a linear map of the full model's KV, too")
    add("--kv-map", type=path, metavar="FILE",
        help="default: the one in --decode, or as its overfill.json says")
    add("--chat-template", action="store_true",
        help="make chats of prompt/answer lines; other chats always are")
    add("--language", default="", metavar="CODE",
        help='only lines whose "langdetect" is this')


def _add_how(group: Any) -> None:
    add = group.add_argument
    add("--lr", type=_POSITIVE, default=2e-5)
    add("--warmup-share", type=_SHARE, default=0.01)
    add("--weight-decay", type=_NOT_NEGATIVE, default=0.0)
    add("--clip-norm", type=_POSITIVE, default=1.0)
    add("--epochs", type=_POSITIVE, default=1.0)
    add("--max-steps", type=_FROM_ZERO, default=0,
        help="fewer than the epochs have; the schedule is of these")
    add("--batch-size", type=_COUNT, default=64,
        help="sequences per step, over all processes")
    add("--micro-batch", type=_COUNT, default=1,
        help="sequences at once in a process")
    add("--sequence-tokens", default=2048,
        type=_number(int, 2, _MOST, name="whole number"))
    add("--seed", type=_FROM_ZERO, default=1)
    add("--dtype", choices=DTYPES, default="bfloat16",
        help="bfloat16: autocast; the trained weights stay float32")
    add("--gradient-checkpointing", action="store_true")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=_FROM_ZERO, default=0)
    add("--parallel", choices=KINDS, default="none",
        help="ddp, fsdp: under torchrun")


def _add_run(group: Any) -> None:
    add, path = group.add_argument, pathlib.Path
    add("--dev-share", type=_number(float, 0, 0.99), default=0.0,
        help="share of the lines that is held out and scored")
    add("--dev-data", type=path, metavar="FILE",
        help="lines to score in its place")
    add("--dev-every", type=_FROM_ZERO, default=0, metavar="STEPS",
        help="0: before the first step and after the last")
    add("--dev-rows", type=_COUNT, default=512, help="at most")
    add("--save-every", type=_FROM_ZERO, default=0, metavar="STEPS",
        help="checkpoints; one every --save-minutes in any case")
    add("--save-minutes", type=_POSITIVE, default=10.0)
    add("--resume", choices=("auto", "never"), default="auto")
    add("--metrics", type=path, metavar="FILE.csv",
        help="default: OUT.run/metrics.csv, in the end OUT/metrics.csv")
    add("--tensorboard", type=path, metavar="DIR")


def main(argv: Optional[List[str]] = None) -> int:
    return distil_run.run(parse_args(argv))


if __name__ == "__main__":
    main_of(main)
