"""Whether the rules' unit tests would see a rule that is a little wrong.

Each rule is changed in each way of the list below, alone, and some unit test
must fail: a limit moved by a tenth, a `for` gone or twice as long, a guard
against division by zero gone, a record that is a tenth too large.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import os
import pathlib
import re
import tempfile
import unittest
from typing import Iterator, List, Set, Tuple

import yaml

import promql
import rule_files
from rule_files import RULES, UNIT_TESTS, Rule, load, promtool

Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

# These compare whole numbers: a tenth more or less is the same rule.
COUNTS = {"OverfillRestarting", "OverfillPairsDiffer"}
_LIMIT = re.compile(r"(>=|<=|==|>|<)(\s*)(\d+\.?\d*)")
_GUARD = re.compile(r"\s*>=? 0\b")
FAR = 1e9  # no value of a metric is beyond


@dataclasses.dataclass
class Mutant:
    rule: Rule
    what: str
    content: dict

    def __str__(self) -> str:
        return f"{self.rule.name} with {self.what}"


def moved_limits(rule: Rule) -> Iterator[Mutant]:
    for match in _LIMIT.finditer(rule.expr):
        limit = float(match[3])
        if match[1] == "==":
            others = [limit + 1]
        elif limit == 0:
            others = [-1, FAR]
        elif rule.name in COUNTS:
            others = [limit - 1, limit + 1]
        else:
            others = [limit * 0.9, limit * 1.1]
        for other in others:
            expr = (rule.expr[:match.start(3)] + f"{other:g}" +
                    rule.expr[match.end(3):])
            yield Mutant(rule, f"{match[0]} moved to {other:g}",
                         dict(rule.content, expr=expr))


def changed_holds(rule: Rule) -> Iterator[Mutant]:
    if not rule.hold:
        yield Mutant(rule, "a `for` of a minute",
                     dict(rule.content, **{"for": "1m"}))
        return
    for factor in (0, 2):
        hold = f"{int(rule.hold * factor)}s"
        yield Mutant(rule, f"for {hold}",
                     dict(rule.content, **{"for": hold}))


def without_guards(rule: Rule) -> Iterator[Mutant]:
    for match in _GUARD.finditer(rule.expr):
        expr = rule.expr[:match.start()] + rule.expr[match.end():]
        yield Mutant(rule, f"the guard {match[0].strip()!r} gone",
                     dict(rule.content, expr=expr))


def mutants() -> List[Mutant]:
    found: List[Mutant] = []
    for rule in rule_files.alerts():
        found += moved_limits(rule)
        found += changed_holds(rule)
    for rule in rule_files.records():
        found.append(Mutant(rule, "a tenth more", dict(
            rule.content, expr=f"({rule.expr}) * 1.1")))
        found += without_guards(rule)
    return found


def tests_of(rule: Rule) -> Iterator[Tuple[str, dict]]:
    """(file, what of it names the rule); not of the idle server, for which the
    rules are all the same."""
    key, part = (("alertname", "alert_rule_test") if rule.is_alert else
                 ("expr", "promql_expr_test"))
    for path in UNIT_TESTS:
        if path.name == "idle.yaml":
            continue
        content = dict(load(path))
        content["tests"] = [
            {**{name: value for name, value in test.items()
                if not name.endswith("_test")},
             part: [case for case in test.get(part, [])
                    if rule.name in case[key]]}
            for test in content["tests"]]
        content["tests"] = [test for test in content["tests"] if test[part]]
        if content["tests"]:
            yield path.name, content


def needed(rule: Rule) -> Set[str]:
    """The rule and the records that it is made of."""
    names, left = {rule.name}, [rule.expr]
    while left:
        for metric in promql.names(left.pop()).metrics - names:
            of_metric = [other.expr for other in rule_files.records()
                         if other.name == metric]
            if of_metric:
                names.add(metric)
                left += of_metric
    return names


def write_rules(mutant: Mutant, directory: pathlib.Path) -> None:
    """With the rules that it takes alone, which is quick."""
    names = needed(mutant.rule)
    replaced = 0
    for path in RULES:
        content = copy.deepcopy(load(path))
        for group in content["groups"]:
            rules = [rule for rule in group["rules"]
                     if rule.get("alert", rule.get("record")) in names]
            replaced += rules.count(mutant.rule.content)
            group["rules"] = [
                mutant.content if rule == mutant.rule.content else rule
                for rule in rules]
        (directory / path.name).write_text(
            yaml.dump(content, Dumper=Dumper), encoding="utf-8")
    assert replaced == 1, mutant


@contextlib.contextmanager
def folders() -> Iterator[Tuple[pathlib.Path, pathlib.Path]]:
    """For rules and their unit tests, as far from one another as theirs."""
    with tempfile.TemporaryDirectory() as root:
        directory = pathlib.Path(root, "deploy", "monitoring", "rules")
        tests = pathlib.Path(root, "tests", "monitoring", "rules")
        directory.mkdir(parents=True)
        tests.mkdir(parents=True)
        yield directory, tests


def survives(mutant: Mutant) -> bool:
    """Whether no unit test fails."""
    with folders() as (directory, tests):
        write_rules(mutant, directory)
        for name, content in tests_of(mutant.rule):
            path = tests / name
            path.write_text(yaml.dump(content, Dumper=Dumper),
                            encoding="utf-8")
            code, output = promtool("test", "rules", path)
            if code and not re.search(r"^ +(alertname|expr): ", output, re.M):
                raise AssertionError(f"{mutant} is no rule: {output}")
            if code:
                return False
    return True


class MutationTest(unittest.TestCase):

    def test_without_a_change_nothing_is_found(self):
        """Else each mutant would seem to be found."""
        for rule in rule_files.rules():
            with self.subTest(rule.name):
                self.assertTrue(survives(
                    Mutant(rule, "no change", rule.content)))

    def test_every_mutant_is_found(self):
        found = mutants()
        self.assertGreater(len(found), 100)
        cores = len(os.sched_getaffinity(0))
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            results = list(pool.map(survives, found))
        print(f"{len(found)} mutants", flush=True)
        self.assertEqual([str(mutant) for mutant, lives in zip(found, results)
                          if lives], [])


if __name__ == "__main__":
    unittest.main()
