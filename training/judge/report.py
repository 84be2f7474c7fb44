"""Renders what was measured as documents; no figure is typed by hand."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Optional, Sequence

from training.demo import world
from training.judge import plot, systems

PAPER_GAIN = 0.832  # of a 1B decoder pruned from 3B, over pruned alone
Rows = Mapping[str, float]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: Optional[float]) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def interval(rows: Rows, metric: str) -> str:
    if metric not in rows:
        return "not measured"
    return (f"{percent(rows[metric])} [{100 * rows[metric + '_low']:.1f}, "
            f"{100 * rows[metric + '_high']:.1f}]")


def results_of(
    rows: Rows, targets: Mapping[str, Mapping[str, Any]]
) -> List[Dict[str, Any]]:
    """Whether a target is met is computed; one without a value is not."""
    results = []
    for metric in list(rows) + [m for m in targets if m not in rows]:
        value = rows.get(metric)
        result: Dict[str, Any] = {
            "metric": metric, "value": value, "unit": unit_of(metric),
            "target": None, "met": None}
        if metric in targets:
            bound = targets[metric]["target"]
            at_least = targets[metric]["met_when"] == "at_least"
            result["target"] = bound
            result["met"] = value is not None and (
                value >= bound if at_least else value <= bound)
        results.append(result)
    return results


def unit_of(metric: str) -> str:
    if "tokens_per_second" in metric:
        return "tokens/s"
    if "bytes_per_token" in metric:
        return "bytes"
    return "answers" if metric.endswith(".answers") else "share"


def target_table(results: Sequence[Mapping[str, Any]]) -> str:
    return table(["metric", "target", "value", "met"], [
        [result["metric"], percent(result["target"]),
         percent(result["value"]), "yes" if result["met"] else "no"]
        for result in results if result["target"] is not None])


def system_table(rows: Rows) -> str:
    lines = []
    for name in systems.NAMES:
        if f"{name}.exact" not in rows:
            continue
        lines.append([
            name, interval(rows, f"{name}.exact"),
            percent(rows[f"{name}.without_passage.exact"]),
            f"{rows[f'{name}.tokens_per_second']:.0f} "
            f"[{rows[f'{name}.tokens_per_second_low']:.0f}, "
            f"{rows[f'{name}.tokens_per_second_high']:.0f}]",
            f"{rows[f'{name}.bytes_per_token'] / 1e6:.2f} MB"])
    return table(["system", "exact answers", "no passage", "tokens/s",
                  "bytes per token"], lines)


def family_table(rows: Rows) -> str:
    shown = [name for name in systems.NAMES if f"{name}.exact" in rows]
    return table(["questions", *shown], [
        [family, *(interval(rows, f"{name}.{family}.exact")
                   for name in shown)]
        for family in world.FAMILIES])


def lengths(rows: Rows) -> List[int]:
    return sorted(int(match.group(1)) for match in (
        re.fullmatch(r"agreement\.from_(\d+)_tokens", metric)
        for metric in rows) if match)


def agreement_table(rows: Rows) -> str:
    return table(["tokens of full's answer, from", "answers", "the same"], [
        [str(length), str(int(rows[f"agreement.from_{length}_tokens.answers"])),
         percent(rows[f"agreement.from_{length}_tokens"])]
        for length in lengths(rows)])


def shares(rows: Rows) -> List[float]:
    return sorted(float(match.group(1)) for match in (
        re.fullmatch(r"ratio\.([\d.]+)\.two_stage\.exact", metric)
        for metric in rows) if match)


def ratio_table(rows: Rows) -> str:
    return table(["channels kept", "two_stage", "pruned alone"], [
        [percent(share), *(interval(rows, f"ratio.{share:.3f}.{name}.exact")
                           for name in ("two_stage", "pruned"))]
        for share in shares(rows)])


def training_table(rows: Rows) -> str:
    return table(["decoder", "exact with twice the steps, more by"], [
        [name, percent(rows[f"{name}.gain_of_twice_the_steps"])]
        for name in systems.NAMES
        if f"{name}.gain_of_twice_the_steps" in rows])


def chart(rows: Rows) -> str:
    """quality.svg."""
    bars = [plot.Bar(name, *(rows[f"{name}.exact{end}"]
                             for end in ("", "_low", "_high")))
            for name in systems.NAMES if f"{name}.exact" in rows]
    same = plot.Curve("two_stage says what full says", [
        (float(length), rows[f"agreement.from_{length}_tokens"])
        for length in lengths(rows)])
    by_share = [plot.Curve(name, [
        (round(100 * share), rows[f"ratio.{share:.3f}.{name}.exact"])
        for share in shares(rows)
        if f"ratio.{share:.3f}.{name}.exact" in rows])
        for name in ("two_stage", "pruned")]
    return plot.page([
        plot.bars("Exact answers", "", bars),
        plot.curves("Agreement", "tokens of the answer, at least", [same]),
        plot.curves("Pruning", "% of the hidden channels kept", by_share)])


def markdown(report: Mapping[str, Any]) -> str:
    """quality.md."""
    rows = {result["metric"]: result["value"] for result in report["results"]
            if result["value"] is not None}
    machine = report["machine"]
    sections = {
        "Targets": target_table(report["results"]),
        "By family": family_table(rows),
        "How often the pair says what the full model says":
            agreement_table(rows),
        "How much was cut": ratio_table(rows),
        "What more training would give, on the development split":
            training_table(rows)}
    return f"""# Quality of the bundled pair

Exact answers to held-out questions, asked greedily through the server; an
answer counts only when its whole text is right. The entities of these
questions are in no training text, and neither is the form of any question
together with what it asks for. `pruned` is the same cut as the pair's decoder,
trained to read the prompt by itself; `scratch` has the same widths and began
at random. All three decoders saw the same answers, each at the best of three
learning rates on a development split; what twice the steps would add stands
below ([training](../training.md)). In brackets 95 % intervals over items; for
tokens/s, of one stream, the extremes of its rounds. Bytes per token are the
weights and the KV that a decode step reads.

Written by `./dev eval` from commit {report["commit"]} on {machine["cpu"]},
{machine["cores"]} cores. {report["per_family"]} questions of each of
{len(world.FAMILIES)} families, seed {report["seed"]}.

![Exact answers, agreement and pruning](quality.svg)

{system_table(rows)}

The pair comes {interval(rows, "gap_closed")} of the way from pruned alone to
full. Over pruned alone it gains {interval(rows, "relative_gain")}; the paper
reports {percent(PAPER_GAIN)} for a decoder of 1B.

""" + "\n".join(f"## {title}\n\n{text}\n"
                   for title, text in sections.items())
