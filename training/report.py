"""Renders what was measured as documents; no figure is typed by hand.

    python3 -m training.report --pair models/demo \\
        --quality docs/benchmarks/quality.json

writes the pair's model card, PAIR/README.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any, Dict, List, Sequence

from training import world
from training.judge.report import percent, table, target_table

PATHS = ("two_stage", "full", "pruned")


def score_table(results: Sequence[Dict[str, Any]]) -> str:
    """Families down, paths across; with the passage and without."""
    values = {result["metric"]: result["value"] for result in results}
    header = ["questions"] + list(PATHS) + [
        f"{path}, no passage" for path in PATHS]
    rows: List[List[str]] = []
    for family in ("lookup",) + world.FAMILIES:
        row = [family]
        for part in ("", "without_passage."):
            row += [percent(values.get(f"{path}.{family}.{part}exact"))
                    for path in PATHS]
        rows.append(row)
    return table(header, rows)


def quality_markdown(report: Dict[str, Any]) -> str:
    """docs/benchmarks/quality.md."""
    machine = report["machine"]
    return f"""# Quality of the bundled pair

Exact answers to held-out questions, asked greedily through the server; an
answer counts only when its whole text is right. `lookup` is people and things
together; the entities in these questions are in no training text. Written by
`./dev eval` from commit {report["commit"]} on {machine["cpu"]},
{machine["cores"]} cores. {report["per_family"]} questions of each family,
seed {report["seed"]}.

{target_table(report["results"])}

{score_table(report["results"])}
"""


def stage_table(stages: Sequence[Dict[str, Any]]) -> str:
    rows = [[stage["name"], str(stage["steps"]),
             f"{stage['tokens'] / 1e6:.1f} million",
             f"{stage['seconds'] / 60:.1f} minutes"] for stage in stages]
    total = [sum(stage[key] for stage in stages)
             for key in ("steps", "tokens", "seconds")]
    rows.append(["in all", str(total[0]), f"{total[1] / 1e6:.1f} million",
                 f"{total[2] / 60:.1f} minutes"])
    return table(["stage", "steps", "tokens", "time"], rows)


def model_table(training: Dict[str, Any]) -> str:
    names = ("full", "decode")
    rows = [[key.replace("_", " ")] + [str(training[name][key])
                                       for name in names]
            for key in training["full"]]
    return table(["", *names], rows)


CARD = """# The demo pair

A small pair that was really trained, so that the server has something to serve
on any machine: a full Llama-style model and its width-pruned sibling, which
reads the full model's KV cache. It answers questions about a short English
passage, and nothing else.

    {passage}
    Question: {question}
    Answer:

{models}

## Data

Passages and questions come from the seeded generator `training/world.py`:
people with towns, jobs and belongings; things with prices, colours and places;
records; lists; and four harder families (reverse: whose value is it; two hops;
counting; comparing). One entity in five (names, towns, nouns, listed and invented ones) is
held out by a digest of its spelling and appears in no training text. The
byte-level BPE tokenizer was trained on the same passages.

## Training

Made by `./dev train` from seed {seed}, on two cores that other work shared:

{stages}

The full model starts from random weights into whose first two layers a copying
circuit is written (`training/copying.py`); nothing is frozen. It learns to
copy (induction), then to bind values to subjects in random token sequences,
then the passages, which grow as the answers become right. The pruned model is
cut from it by activation importance (`training/prune.py`) to odd widths, and
distilled on the answers while the full model, frozen, reads the prompts
(`training/distil.py`). So that unseen words are copied like seen ones, one step
in six of the language stage and one in three of the distillation is on facts of
random tokens. The optimizer is AdamW, the peak learning rate 2e-3, under bf16
autocast. The distillation was interrupted and went on from its last checkpoint.

## Scores

Held-out entities, greedy, exact match, through the server
(`docs/benchmarks/quality.json`):

{scores}

## Limits

The vocabulary is the generator's. A question about something that the passage
does not say gets a made-up answer. The harder families are as weak as the table
says. It is a test object and a demonstration, not a language model to use.

The licence is the repository's, Apache-2.0.
"""


def model_card(training: Dict[str, Any], quality: Dict[str, Any]) -> str:
    return CARD.format(
        passage="Anna lives in Bergen and works as a baker. Tom owns a red kite.",
        question="Where does Anna live?",
        models=model_table(training), seed=training["seed"],
        stages=stage_table(training["stages"]),
        scores=score_table(quality["results"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=pathlib.Path, required=True)
    parser.add_argument("--quality", type=pathlib.Path, required=True)
    args = parser.parse_args()
    training = json.loads((args.pair / "training.json").read_text())
    quality = json.loads(args.quality.read_text())
    (args.pair / "README.md").write_text(
        model_card(training, quality), encoding="utf-8")


if __name__ == "__main__":
    main()
