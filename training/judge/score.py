"""Puts the items to every system through the server, and makes the rows."""

from __future__ import annotations

import json
import pathlib
import statistics as plain
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from training.judge import served, statistics, systems
from training.judge.items import Item

# Tokens of the full model's answer: at least so many, up to the next.
LENGTHS = (1, 4, 6, 8, 11, 15)
SPEED_TOKENS = 64
SPEED_PROMPTS = 24
SPEED_ROUNDS = 5
# What several systems say together, and which ones.
COMPARISONS = {
    "gap_closed": (statistics.gap_closed, ("full", "two_stage", "pruned")),
    "relative_gain": (statistics.relative_gain, ("two_stage", "pruned")),
    "gap": (statistics.difference("full", "pruned"), ("full", "pruned")),
    "two_stage_over_scratch": (
        statistics.difference("two_stage", "scratch"),
        ("two_stage", "scratch")),
}


class Answers(NamedTuple):
    replies: List[served.Reply]
    bare: List[served.Reply]  # with the passage taken away


class Speed(NamedTuple):
    tokens_per_second: List[float]  # one stream, one value per round
    bytes_per_token: float          # weights and KV that a step reads


def marks_of(
    items: Sequence[Item], replies: Sequence[served.Reply]
) -> List[bool]:
    return [reply.text == item.answer for item, reply in zip(items, replies)]


def measure_speed(
    client: served.Client, system: systems.System, full: pathlib.Path,
    prompts: Sequence[str], num_prompt_tokens: float,
) -> Speed:
    """One stream at a time; ends of answers are ignored, so that all systems
    decode as many tokens after the same prompts."""
    rounds = []
    for _ in range(SPEED_ROUNDS):
        replies = [client.ask(system.path, prompt, SPEED_TOKENS)
                   for prompt in prompts]
        rounds.append(sum(reply.num_tokens - 1 for reply in replies)
                      / sum(reply.decode_seconds for reply in replies))
    mean_context = num_prompt_tokens + SPEED_TOKENS / 2
    weights = systems.weight_bytes(system.weights_folder(full))
    return Speed(rounds, weights + mean_context * client.kv_bytes_per_token())


def ask_system(
    binary: pathlib.Path, pair: pathlib.Path, system: systems.System,
    items: Sequence[Item], stubs: Tuple[Any, Any], bare: bool = True,
    speed: bool = True,
) -> Tuple[Answers, Dict[str, Any]]:
    """The answers, and the system's speed where it is asked for."""
    full = pair / "full"
    with served.server(binary, full, system.decode) as target, \
            served.Client(target, stubs) as client:
        replies = client.ask_all(system.path, [item.prompt for item in items])
        without = client.ask_all(
            system.path, [item.bare_prompt for item in items]) if bare else []
        measured: Dict[str, Any] = {}
        if speed:
            prompts = [item.prompt
                       for item in items[::max(1, len(items) // SPEED_PROMPTS)]]
            lengths = [client.num_tokens(prompt) for prompt in prompts]
            measured = measure_speed(
                client, system, full, prompts, plain.mean(lengths))._asdict()
    return Answers(replies, without), measured


def estimate_rows(prefix: str, estimate: statistics.Estimate
                  ) -> Dict[str, float]:
    return {prefix: estimate.value, f"{prefix}_low": estimate.low,
            f"{prefix}_high": estimate.high}


def exact_rows(
    items: Sequence[Item], answers: Dict[str, Answers]
) -> Dict[str, float]:
    """Exact answers of every system by family, and what they say together."""
    families = [item.family for item in items]
    marks = statistics.Marks(families, {
        name: marks_of(items, given.replies)
        for name, given in answers.items()})
    rows: Dict[str, float] = {}
    for name, given in answers.items():
        rows.update(estimate_rows(
            f"{name}.exact", marks.estimate(statistics.mean_of(name))))
        bare = marks_of(items, given.bare)
        rows[f"{name}.without_passage.exact"] = plain.mean(bare)
        for family in dict.fromkeys(families):
            rows.update(estimate_rows(
                f"{name}.{family}.exact",
                marks.only(family).estimate(statistics.mean_of(name))))
            rows[f"{name}.{family}.without_passage.exact"] = plain.mean(
                right for right, of in zip(bare, families) if of == family)
    for name, (statistic, needed) in COMPARISONS.items():
        if all(system in answers for system in needed):
            rows.update(estimate_rows(name, marks.estimate(statistic)))
    return rows


def agreement_rows(answers: Dict[str, Answers]) -> Dict[str, float]:
    """How often two_stage says what full says, by the length of that."""
    groups: Dict[int, List[bool]] = {}
    for ours, theirs in zip(answers["two_stage"].replies,
                            answers["full"].replies):
        least = max(length for length in LENGTHS
                    if length <= max(1, theirs.num_tokens))
        groups.setdefault(least, []).append(ours.text == theirs.text)
    rows: Dict[str, float] = {}
    for least, same in sorted(groups.items()):
        rows[f"agreement.from_{least}_tokens"] = plain.mean(same)
        rows[f"agreement.from_{least}_tokens.answers"] = len(same)
    return rows


def speed_rows(speeds: Dict[str, Dict[str, Any]]) -> Dict[str, float]:
    rows: Dict[str, float] = {}
    for name, speed in speeds.items():
        rounds = speed["tokens_per_second"]
        rows[f"{name}.tokens_per_second"] = plain.median(rounds)
        rows[f"{name}.tokens_per_second_low"] = min(rounds)
        rows[f"{name}.tokens_per_second_high"] = max(rounds)
        rows[f"{name}.bytes_per_token"] = speed["bytes_per_token"]
    return rows


def ratio_rows(
    items: Sequence[Item], by_share: Dict[float, Dict[str, Answers]]
) -> Dict[str, float]:
    rows: Dict[str, float] = {}
    for share, answers in by_share.items():
        marks = statistics.Marks([item.family for item in items], {
            name: marks_of(items, given.replies)
            for name, given in answers.items()})
        for name in answers:
            rows.update(estimate_rows(
                f"ratio.{share:.3f}.{name}.exact",
                marks.estimate(statistics.mean_of(name))))
    return rows


def training_rows(pair: pathlib.Path) -> Dict[str, float]:
    """What twice the steps would add to each, on the development split."""
    path = pair / "judged" / "training.json"
    if not path.exists():
        return {}
    runs = json.loads(path.read_text(encoding="utf-8"))["chosen"]
    return {f"{name}.gain_of_twice_the_steps": run["gain_of_twice_the_steps"]
            for name, run in runs.items()}
