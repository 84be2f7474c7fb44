"""Checks docs/reliability.md against the tests, and all documents' links.

The last column of the table names tests, as `Suite.Name` or `Class.test_name`,
or says what the row waits for. A test counts only where its folder's
CMakeLists.txt builds or runs its file.
"""

from __future__ import annotations

import pathlib
import re
from typing import Iterator, List, Set

NUM_ROWS = 31
WAITS = "Waits for "

_ROW = re.compile(r"^\| (\d+) \|(.*)\|$", re.MULTILINE)
_CC_TEST = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)", re.MULTILINE)
_PY_CLASS = re.compile(r"^class (\w+)")
_PY_TEST = re.compile(r"^    def (test_\w+)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def python_tests(text: str) -> Iterator[str]:
    name = ""
    for line in text.splitlines():
        in_class = _PY_CLASS.match(line)
        test = _PY_TEST.match(line)
        if in_class:
            name = in_class.group(1)
        elif test:
            yield f"{name}.{test.group(1)}"


def is_run(path: pathlib.Path) -> bool:
    """Whether the folder's CMakeLists.txt has the file, by its name or, as the
    end-to-end tests, without what all their names end in."""
    lists = path.parent / "CMakeLists.txt"
    if not lists.exists():
        return False
    words = re.findall(r"[\w.]+", lists.read_text(encoding="utf-8"))
    return path.name in words or path.stem.removesuffix("_test") in words


def known_tests(root: pathlib.Path) -> Set[str]:
    found: Set[str] = set()
    for path in sorted((root / "tests").rglob("*_test.*")):
        if path.suffix not in (".cc", ".py") or not is_run(path):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".cc":
            found |= {f"{suite}.{name}" for suite, name in _CC_TEST.findall(text)
                      if not name.startswith("DISABLED_")}
        else:
            found |= set(python_tests(text))
    return found


def check_row(number: int, cells: List[str], known: Set[str]) -> Iterator[str]:
    if len(cells) != 3:
        yield f"row {number}: {len(cells) + 1} columns instead of 4"
        return
    wrong, invariant, held_by = cells
    if not wrong:
        yield f"row {number}: does not say what goes wrong"
    names = re.findall(r"`([^`]*)`", held_by)
    for name in names:
        if name not in known:
            yield f"row {number}: there is no test {name}"
    if names and (not invariant or re.sub(r"`[^`]*`", "", held_by).strip()):
        yield f"row {number}: tests need an invariant, and stand alone"
    if not names and not held_by.startswith(WAITS):
        yield f"row {number}: neither tests nor what it waits for"


def check_table(text: str, known: Set[str]) -> List[str]:
    rows = [(int(number), [cell.strip() for cell in cells.split("|")])
            for number, cells in _ROW.findall(text)]
    numbers = [number for number, _ in rows]
    found = [line for number, cells in rows
             for line in check_row(number, cells, known)]
    if numbers != list(range(1, NUM_ROWS + 1)):
        found.append(f"the rows are {numbers}, not 1 to {NUM_ROWS}")
    return found


def anchors(text: str) -> Set[str]:
    """Of the headings, as Markdown viewers make them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in _HEADING.findall(text)}


def check_links(root: pathlib.Path) -> List[str]:
    found = []
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        for link in _LINK.findall(path.read_text(encoding="utf-8")):
            target, _, anchor = link.partition("#")
            if "://" in link:
                continue
            file = path.parent / target if target else path
            if not file.exists():
                found.append(f"{path.relative_to(root)}: {link} is not there")
            elif anchor and anchor not in anchors(
                    file.read_text(encoding="utf-8")):
                found.append(f"{path.relative_to(root)}: {link} has no heading")
    return found
