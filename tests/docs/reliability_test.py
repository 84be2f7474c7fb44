"""The documents as they are, and each rule broken once: the check must say
so."""

import pathlib
import tempfile
import unittest

from tests.docs import reliability

ROOT = pathlib.Path(__file__).resolve().parents[2]
KNOWN = {"Suite.Name"}


def table(rows: dict) -> str:
    """A good table, but for these rows."""
    return "\n".join(
        rows.get(i, f"| {i} | It breaks. | It holds. | `Suite.Name` |")
        for i in range(1, reliability.NUM_ROWS + 1))


class DocumentsTest(unittest.TestCase):

    def test_every_named_test_exists(self) -> None:
        text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
        self.assertEqual([], reliability.check_table(
            text, reliability.known_tests(ROOT)))

    def test_links_lead_somewhere(self) -> None:
        self.assertEqual([], reliability.check_links(ROOT))


class TableTest(unittest.TestCase):

    def check(self, *rows: str) -> list:
        return reliability.check_table(
            table({i: row for i, row in enumerate(rows, 1)}), KNOWN)

    def test_a_good_table_passes(self) -> None:
        self.assertEqual([], self.check())
        self.assertEqual([], self.check("| 1 | It breaks. | | Waits for it. |"))

    def test_what_is_not_there_is_named(self) -> None:
        for name in ("Suite.Other", "Name", "suite.Name"):
            self.assertEqual(
                [f"row 1: there is no test {name}"],
                self.check(f"| 1 | It breaks. | It holds. | `{name}` |"))

    def test_a_row_is_whole(self) -> None:
        for row in ("| 1 | It breaks. | It holds. | |",
                    "| 1 | It breaks. | It holds. | Surely. |",
                    "| 1 | It breaks. | | `Suite.Name` |",
                    "| 1 | It breaks. | It holds. | `Suite.Name`, mostly |",
                    "| 1 | | It holds. | `Suite.Name` |",
                    "| 1 | It breaks. | `Suite.Name` |"):
            self.assertEqual(1, len(self.check(row)), row)

    def test_every_row_is_there_once(self) -> None:
        second = "| 2 | It breaks. | It holds. | `Suite.Name` |"
        for row in ("", second, second.replace("2", "32")):
            self.assertEqual(1, len(self.check(row)), row)


class KnownTestsTest(unittest.TestCase):

    def known(self, files: dict) -> set:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = pathlib.Path(folder) / "tests" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            return reliability.known_tests(pathlib.Path(folder))

    def test_only_what_is_run_counts(self) -> None:
        cc = "TEST_P(Suite,\n       Name) {\nTEST(Other, DISABLED_Name) {\n"
        py = "class One(Base):\n    def test_it(self):\n"
        files = {"a/b_test.cc": cc, "c/d_test.py": py,
                 "a/CMakeLists.txt": "SOURCES b_test.cc\n",
                 "c/CMakeLists.txt": "foreach(test d)\n"}
        self.assertEqual({"Suite.Name", "One.test_it"}, self.known(files))
        files["a/CMakeLists.txt"] = "SOURCES b.cc\n"
        del files["c/CMakeLists.txt"]
        self.assertEqual(set(), self.known(files))


class LinksTest(unittest.TestCase):

    def test_what_leads_nowhere_is_named(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "docs").mkdir()
            (root / "README.md").write_text(
                "# One two!\n[a](docs/b.md#the-end) [c](#one-two)"
                " [d](https://e.f/g)\n", encoding="utf-8")
            (root / "docs" / "b.md").write_text(
                "## The end\n[h](../README.md) [i](j.md)"
                " [k](../README.md#end)\n", encoding="utf-8")
            self.assertEqual(["docs/b.md: j.md is not there",
                              "docs/b.md: ../README.md#end has no heading"],
                             reliability.check_links(root))


if __name__ == "__main__":
    unittest.main()
