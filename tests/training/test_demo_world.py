"""The demo's world: that its answers are right, and its splits apart."""

import random
import re
import unittest

from training.demo import people, scene, sequences, tables, words, world
from training.judge import items

_WORD = re.compile(r"[A-Za-z]+")


def scenes(seed, held_out, count=12, families=world.FAMILIES):
    rng = random.Random(seed)
    return [world.make_scene(rng, family, 1 + index % 8, held_out)
            for family in families for index in range(count)]


def entities(found):
    """Words that are no ordinary ones: in no text of a split-free word."""
    ordinary = set(_WORD.findall(" ".join(
        [*people.STATEMENTS, *people.SAYS_AGE,
         *sequences.ARROWS, "name list 's and an a The",
         *(f"{r.noun} {r.says}" for r in people.RELATIONS.values())])))
    for listed in (words.JOBS, words.ANIMALS, words.FOODS, words.COLOURS,
                   words.MATERIALS):
        ordinary |= set(listed)
    texts = " ".join(scene.passage for scene in found)
    return {word for word in _WORD.findall(texts)
            if len(word) > 1} - ordinary


class WorldTest(unittest.TestCase):
    def test_a_seed_gives_one_world(self):
        self.assertEqual(scenes(3, False), scenes(3, False))
        self.assertNotEqual(scenes(3, False), scenes(4, False))

    def test_every_size_of_every_family_has_questions(self):
        for made in scenes(5, False) + scenes(5, True):
            self.assertTrue(made.passage)
            self.assertTrue(made.questions)
            for question in made.questions:
                self.assertTrue((question.text + question.answer).isascii())
                self.assertNotIn("{", question.text + question.answer)

    def test_the_splits_share_no_entity(self):
        train = entities(scenes(6, False, 60))
        held_out = entities(scenes(6, True, 60))
        self.assertGreater(len(train), 500)
        self.assertGreater(len(held_out), 500)
        self.assertEqual(train & held_out, set())
        for word in held_out:
            self.assertTrue(words.is_held_out(word), word)

    def test_a_form_is_of_one_split_alone(self):
        for index in range(7):
            train = scene.forms_of_split(people.QUESTIONS, False, index)
            test = scene.forms_of_split(people.QUESTIONS, True, index)
            self.assertEqual(set(train) | set(test), set(people.QUESTIONS))
            self.assertEqual(set(train) & set(test), set())
            self.assertEqual(len(test), 1)

    def test_each_word_of_the_test_is_known_from_training(self):
        """Else nobody could understand it: combinations are held out."""
        def used(held_out):
            found = set()
            for made in scenes(7, held_out, 200):
                names = entities([made])
                for text in [made.passage] + [
                        q.text for q in made.questions]:
                    found |= set(_WORD.findall(text)) - names
            return found

        strange = {word for word in used(True) - used(False)
                   if not words.is_held_out(word)}
        self.assertEqual(strange, set())

    def test_questions_of_the_test_are_in_no_training(self):
        def asked(held_out):
            return {re.sub(r"\b[A-Z]?[a-z]+(?='s )|(?<=of )\w+", "#",
                           q.text.replace("?", " ?"))
                    for made in scenes(8, held_out, 60, ("lookup",))
                    for q in made.questions}

        self.assertTrue(asked(True))
        self.assertEqual(asked(True) & asked(False), set())


class AnswersTest(unittest.TestCase):
    """Answers found again from the passage alone, by other means."""

    def facts(self, passage):
        """(name, relation) -> value."""
        found = {}
        for sentence in re.split(r"(?<=[.])\s+", passage):
            joined = re.fullmatch(r"(\w+) (.*) and (.*)\.", sentence)
            parts = [sentence]
            if joined:
                parts = [f"{joined[1]} {joined[at]}." for at in (2, 3)]
            for part in parts:
                name, relation, value = self.fact(part)
                found[name, relation] = value
        return found

    def fact(self, sentence):
        for relation, r in people.RELATIONS.items():
            says = r.says.replace("{a}", "an? (?P<v>.+)").replace(
                "{v}", "(?P<v>.+)")
            for form in (rf"(?P<n>\w+) {says}\.",
                         rf"(?P<n>\w+)'s {r.noun} is (?P<v>.+)\.",
                         rf"The {r.noun} of (?P<n>\w+) is (?P<v>.+)\."):
                match = re.fullmatch(form, sentence)
                # "works for" is also "works as"'s beginning, never its whole.
                if match:
                    return match["n"], relation, match["v"]
        raise AssertionError(sentence)

    def test_lookups_and_hops(self):
        nouns = {r.noun: name for name, r in people.RELATIONS.items()}
        checked = 0
        for held_out in (False, True):
            for made in scenes(8, held_out, 16, ("lookup", "hops")):
                facts = self.facts(made.passage)
                for question in made.questions:
                    if question.family == "lookup":
                        self.assertIn(question.answer[:-1], facts.values())
                        continue
                    name = next(n for n, _ in facts if re.search(
                        rf"\b{n}\b", question.text))
                    used = [nouns[word] for word in _WORD.findall(
                        question.text) if word in nouns]
                    via = next(r for r in used if r in people.PERSONAL)
                    other = facts[name, via]
                    value = {facts.get((other, r)) for r in used}
                    told = question.answer[:-1].split(", ")
                    self.assertEqual(told[0], other)
                    self.assertIn(told[1], value)
                    checked += 1
        self.assertGreater(checked, 100)

    def test_counts(self):
        for made in scenes(9, False, 20, ("counting",)):
            facts = self.facts(made.passage)
            for question in made.questions:
                who, number = question.answer[:-1].split(": ")
                names = re.split(r", | and ", who)
                self.assertEqual(words.NUMBERS.index(number), len(names))
                values = {facts[name, relation] for name, relation in facts
                          if name in names}
                self.assertEqual(len(values), 1)
                (value,) = values
                self.assertIn(value, question.text)
                self.assertEqual({n for (n, _), v in facts.items()
                                  if v == value}, set(names))

    def test_comparisons(self):
        for held_out in (False, True):
            for made in scenes(10, held_out, 20, ("comparing",)):
                ages = {}
                for sentence in made.passage.split(". "):
                    names = [word for word in _WORD.findall(sentence)
                             if word[0].isupper() and word != "The"]
                    ages[names[0]] = int(re.search(r"\d+", sentence)[0])
                for question in made.questions:
                    name, age = question.answer[:-1].split(", ")
                    asked = [n for n in ages
                             if re.search(rf"\b{n}\b", question.text)]
                    best = max if "old" in question.text else min
                    self.assertEqual(
                        best(asked or list(ages), key=ages.get), name)
                    self.assertEqual(ages[name], int(age))

    def test_patterns_follow_their_examples(self):
        for made in scenes(11, True, 20, ("pattern",)):
            rules = None
            for line in made.passage.split("\n"):
                arrow = next(a for a in sequences.ARROWS if f" {a} " in line)
                given, out = [part.split() for part in line.split(f" {arrow} ")]
                fit = {tuple(given.index(word) for word in out)}
                rules = fit if rules is None else rules & fit
            self.assertEqual(len(rules), 1)
            (rule,) = rules
            for question in made.questions:
                given = question.text.split()[:3]
                self.assertEqual(question.answer.split(),
                                 [given[index] for index in rule])

    def test_a_guess_of_the_rule_is_seldom_right(self):
        self.assertEqual(len(set(sequences.RULES)), len(sequences.RULES))
        # Of all families together, a guess of one family's rule alone.
        self.assertLess(1 / len(sequences.RULES) / len(world.FAMILIES), 0.05)

    def test_rewritten_lists(self):
        for made in scenes(12, False, 20, ("rewriting",)):
            lists = {line.split("'s list: ")[0]:
                     line.split("'s list: ")[1][:-1].split(", ")
                     for line in made.passage.split("\n")}
            for question in made.questions:
                owner = next(o for o in lists if o in question.text)
                listed, out = lists[owner], question.answer[:-1].split(", ")
                text = question.text
                word = re.search(r"the (\w+)( on)?[.?]$", text)
                if "ackwards" in text or text.startswith("Reverse"):
                    self.assertEqual(out, listed[::-1])
                elif "without" in text:
                    self.assertEqual(out + [word[1]], sorted(
                        listed, key=lambda x: (x == word[1], listed.index(x))))
                elif "up to" in text:
                    self.assertEqual(out, listed[:listed.index(word[1]) + 1])
                elif " from the " in text:
                    self.assertEqual(out, listed[listed.index(word[1]):])
                elif " for the " in text:
                    new = re.search(r"with (\w+) for", text)[1]
                    self.assertEqual(
                        out, [new if x == word[1] else x for x in listed])
                else:
                    self.assertEqual(out, listed)

    def test_tables(self):
        for made in scenes(13, True, 20, ("table",)):
            header, *rows = [line.split(" | ")
                             for line in made.passage.split("\n")]
            cells = {(row[0], column): cell for row in rows
                     for column, cell in zip(header, row)}
            for question in made.questions:
                out = question.answer[:-1]
                text = question.text
                if "row" in text:
                    self.assertIn(out.split(" | "), rows)
                    self.assertIn(out.split(" | ")[0], text)
                    continue
                column = next(c for c in header[1:]
                              if re.search(rf"\b{c}\b", text))
                name = next((
                    row[0] for row in rows
                    if re.search(rf"\b{row[0]}'s|of {row[0]}\b", text)), None)
                if name and not text.startswith(("Who", "Whose")) and (
                        cells[name, column] not in text):
                    self.assertEqual(out, cells[name, column])
                else:
                    self.assertIn(cells[out, column], text)


class ItemsTest(unittest.TestCase):
    def test_the_judges_own_items_can_be_made(self):
        made = items.make_items(items.TEST_SEED, 200)
        self.assertEqual(len(made), 200 * len(world.FAMILIES))
        # Of this seed, one passage has nothing to ask.
        self.assertEqual(len({item.prompt for item in made}), len(made))

    def test_items_are_held_out_and_reproducible(self):
        made = items.make_items(1, 3)
        self.assertEqual(made, items.make_items(1, 3))
        self.assertNotEqual(made, items.make_items(2, 3))
        self.assertEqual(len({item.id for item in made}), len(made))
        self.assertEqual({item.family for item in made}, set(world.FAMILIES))
        for item in made:
            self.assertTrue(item.prompt.endswith("\n" + item.bare_prompt))
            self.assertTrue(item.bare_prompt.startswith("Question: "))
            self.assertTrue(item.bare_prompt.endswith("\nAnswer:"))


if __name__ == "__main__":
    unittest.main()
