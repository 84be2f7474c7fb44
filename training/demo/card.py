"""Writes the pair's model card, PAIR/README.md; no figure is typed by hand.

    python3 -m training.demo.card --pair models/demo \\
        --quality docs/benchmarks/quality.json
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any, Dict

from training import checkpoint
from training.demo import recipe
from training.errors import Parser, main_of
from training.judge import report

CARD = """# The demo pair

A small pair that was really trained, so that the server has something to serve
on any machine: a full Llama-style model and its width-pruned sibling, which
reads the full model's KV cache. It answers questions about a short English
passage, and nothing else.

    Anna lives in Bergen and works as a baker. Tom owns a red kite.
    Question: Where does Anna live?
    Answer:

{models}

## Data

Passages and questions come from the seeded generator `training/demo/`, in seven
families: a fact among many (lookup), a fact of somebody's friend or boss
(hops), a rule shown by examples (pattern), cells and rows of a table (table),
a list written anew under a constraint (rewriting), how many and who (counting),
the older or the youngest (comparing). One name, town or thing in five is held
out by a digest of its spelling and is in no training text, and one form of
each statement and question is held out for some of the words that it could go
with. The byte-level BPE tokenizer was trained on the same passages.

## Training

Made by `./dev train` from seed {seed}, in {processes} processes:

{stages}

The full model starts from random weights into whose first two layers a copying
circuit is written (`training/demo/copying.py`); nothing is frozen. It learns to
copy, then to tell apart whose value a value is in sequences of random tokens,
then the passages, which grow. The pruned model is cut from it by the
activations of both norms and of each MLP (`training/prune.py`), to odd widths,
and learns the answers while the full model, frozen, reads the prompts: cross
entropy, and the KL to the full model's distribution (`training/two_stage.py`).
One step in eight of the full model, and one in five of the decoder, is on
random tokens, so that unseen words are copied like seen ones.

`judged/`, where it is there, holds the decoders that the pair is compared with
([quality](../../docs/benchmarks/quality.md)); `judged/training.json` says how
each was trained.

## Scores

Held-out questions, greedy, exact match, through the server
(`docs/benchmarks/quality.json`):

{scores}

## Limits

The vocabulary is the generator's. A question about something that the passage
does not say gets a made-up answer. It is a test object and a demonstration,
not a language model to use.

The licence is the repository's, Apache-2.0.
"""


def model_table(pair: pathlib.Path) -> str:
    configs = [checkpoint.read_config(pair / half)[0]
               for half in ("full", "decode")]
    rows = [["parameters", *(
        str(sum(math.prod(shape) for shape
                in checkpoint.expected_shapes(config).values()))
        for config in configs)]]
    rows += [[name.replace("_", " "), *(str(getattr(c, name))
                                        for c in configs)]
             for name in ("hidden_size", "intermediate_size",
                          "num_hidden_layers", "num_attention_heads",
                          "head_dim", "vocab_size")]
    return report.table(["", "full", "decode"], rows)


def stage_table(stages: Dict[str, Dict[str, float]]) -> str:
    return report.table(
        ["model", "steps", "answer tokens", "time", "development, exact"],
        [[name, str(int(stage["steps"])),
          f"{stage['tokens'] / 1e6:.1f} million",
          f"{stage['seconds'] / 60:.1f} minutes",
          report.percent(stage["dev_exact"])]
         for name, stage in stages.items()])


def card(pair: pathlib.Path, quality: Dict[str, Any]) -> str:
    training = json.loads((pair / "training.json").read_text(encoding="utf-8"))
    rows = {result["metric"]: result["value"] for result in quality["results"]
            if result["value"] is not None}
    return CARD.format(
        models=model_table(pair), seed=training["recipe"]["seed"],
        processes=training["processes"], stages=stage_table(training["stages"]),
        scores=report.family_table(rows))


def main() -> None:
    parser = Parser(prog="training.demo.card", description=__doc__)
    parser.add_argument("--pair", type=pathlib.Path, required=True)
    parser.add_argument("--quality", type=pathlib.Path, required=True)
    args = parser.parse_args()
    quality = json.loads(args.quality.read_text(encoding="utf-8"))
    (args.pair / "README.md").write_text(
        card(args.pair, quality), encoding="utf-8")
    recipe.log(f"{args.pair / 'README.md'}: written")


if __name__ == "__main__":
    main_of(main)
