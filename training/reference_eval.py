"""Scores the three paths in PyTorch on held-out questions.

    python3 -m training.reference_eval --pair models/demo --json scores.json

Greedy answers, right only when the whole text is. Weights are the bf16 ones
of the checkpoints, and keys and values are rounded to bf16, as they are when
served.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
from typing import Any, Dict, List, Sequence, Tuple

import torch

from training import checkpoint
from training.eval_items import DEFAULT_SEED, Item, make_items
from training.model import LayerKV, Llama, MASKED
from training.tokenizer import Tokenizer

PATHS = ("two_stage", "full", "pruned")
MAX_NEW_TOKENS = 48
ROWS_PER_BATCH = 32


@torch.no_grad()
def greedy(
    prefill: Llama, decode: Llama, prompts: Sequence[List[int]], eos_id: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> List[List[int]]:
    """The answers, EOS left out. `prefill` reads and gives token 0."""
    lens = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.full((len(prompts), int(lens.max())), eos_id)
    for row, prompt in enumerate(prompts):
        ids[row, :len(prompt)] = torch.tensor(prompt)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    answers: List[List[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, kv = prefill(ids, positions)
        last = hidden[torch.arange(len(prompts)), lens - 1]
        token = prefill.logits(last).argmax(-1)
        for step in range(max_new_tokens):
            for row, chosen in enumerate(token.tolist()):
                done[row] = done[row] or chosen == eos_id
                if not done[row]:
                    answers[row].append(chosen)
            if all(done):
                break
            token, kv = _decode_step(decode, token, lens, step, kv)
    return answers


def _decode_step(
    decode: Llama, token: torch.Tensor, lens: torch.Tensor, step: int,
    kv: List[LayerKV],
) -> Tuple[torch.Tensor, List[LayerKV]]:
    num_prompt = kv[0][0].shape[2] - step
    # Its own prompt, and all of the `step + 1` decoded tokens.
    at = torch.arange(num_prompt + step + 1)[None, :]
    seen = (at < lens[:, None]) | (at >= num_prompt)
    mask = torch.where(seen[:, None, None, None], 0.0, MASKED)
    hidden, kv = decode(token[:, None], (lens + step)[:, None], kv, mask)
    return decode.logits(hidden[:, -1]).argmax(-1), kv


def answer_all(
    models: Tuple[Llama, Llama], tokenizer: Tokenizer, texts: Sequence[str]
) -> List[str]:
    """Answers in the order of `texts`; rows of like length run together."""
    prompts = [tokenizer.encode(text, add_bos=True) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(texts)
    for begin in range(0, len(order), ROWS_PER_BATCH):
        part = order[begin:begin + ROWS_PER_BATCH]
        batch = greedy(*models, [prompts[index] for index in part],
                       tokenizer.eos_id)
        for index, ids in zip(part, batch):
            answers[index] = tokenizer.decode(ids)
    return answers


def share_right(
    items: Sequence[Item], answers: Sequence[str]
) -> Dict[str, float]:
    """Per family, the share of items whose answer is exactly right."""
    right: Dict[str, List[bool]] = collections.defaultdict(list)
    for item, answer in zip(items, answers):
        right[item.family].append(answer == item.answer)
    return {family: sum(marks) / len(marks) for family, marks in right.items()}


def score_pair(
    pair: pathlib.Path, items: Sequence[Item]
) -> Dict[str, Dict[str, Dict[str, float]]]:
    """path -> "with_passage" or "without_passage" -> family -> share."""
    full, _ = checkpoint.load_checkpoint(pair / "full")
    pruned, _ = checkpoint.load_checkpoint(pair / "decode")
    tokenizer = Tokenizer.load(pair / "full")
    models = {"two_stage": (full, pruned), "full": (full, full),
              "pruned": (pruned, pruned)}
    scores: Dict[str, Dict[str, Dict[str, float]]] = {}
    for path in PATHS:
        with_passage = answer_all(
            models[path], tokenizer, [item.prompt for item in items])
        without = answer_all(
            models[path], tokenizer, [item.bare_prompt for item in items])
        scores[path] = {"with_passage": share_right(items, with_passage),
                        "without_passage": share_right(items, without)}
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--per_family", type=int, default=200)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    items = make_items(args.seed, args.per_family)
    result: Dict[str, Any] = {
        "seed": args.seed, "per_family": args.per_family,
        "scores": score_pair(args.pair, items)}
    for path, parts in result["scores"].items():
        for part, families in parts.items():
            line = " ".join(f"{family} {share:.3f}"
                            for family, share in families.items())
            print(f"{path} {part}: {line}")
    if args.json:
        checkpoint.write_json(args.json, result)


if __name__ == "__main__":
    main()
