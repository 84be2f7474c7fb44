#!/usr/bin/python3
"""Writes overlays/monitoring/prometheus_rule.yaml from deploy/monitoring/rules.

Kustomize reads no files outside its own folder, and a PrometheusRule wraps the
groups in an object. Needs Debian's python3-yaml.

    deploy/kubernetes/make_prometheus_rule.py          writes it
    deploy/kubernetes/make_prometheus_rule.py --check  exit code 1 if it differs
"""

import argparse
import pathlib
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
RULES = HERE.parent / "monitoring" / "rules"
TARGET = HERE / "overlays" / "monitoring" / "prometheus_rule.yaml"

HEADER = """\
# Written by make_prometheus_rule.py from deploy/monitoring/rules.
"""
LABELS = {"app.kubernetes.io/name": "overfill",
          "app.kubernetes.io/component": "monitoring"}


class Dumper(yaml.SafeDumper):
    """Text of several lines stays so."""


def _text(dumper, text):
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _text)


def read_groups(folder):
    """The groups of all rule files, by file name."""
    groups = []
    for path in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if set(content) != {"groups"}:
            raise SystemExit(f"{path}: not a file of rules")
        groups += content["groups"]
    names = [group["name"] for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise SystemExit(f"{folder}: two groups are called {name}")
    if not groups:
        raise SystemExit(f"{folder}: no rules")
    return groups


def make(folder=RULES):
    """The text of the object."""
    rule = {"apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "overfill", "labels": LABELS},
            "spec": {"groups": read_groups(folder)}}
    return HEADER + yaml.dump(rule, Dumper=Dumper, sort_keys=False, width=70,
                              allow_unicode=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = make()
    if options.check:
        if not TARGET.exists() or TARGET.read_text() != text:
            sys.exit(f"{TARGET} is not what the rules make; run {__file__}")
        return
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
