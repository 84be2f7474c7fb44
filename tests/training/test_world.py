import random
import re
import unittest

from training import eval_items, world, words

_CAPITALISED = re.compile(r"[A-Z][a-z]+")


def scenes(seed: int, held_out: bool, count: int = 12):
    rng = random.Random(seed)
    return [world.make_scene(rng, family, size, held_out)
            for family in world.FAMILIES
            for size in (1 + index % 8 for index in range(count))]


def entities(passages, ordinary):
    """Capitalised words of the passages that are not ordinary English."""
    found = set()
    for passage in passages:
        found.update(_CAPITALISED.findall(passage))
    return found - ordinary


class WorldTest(unittest.TestCase):
    def test_a_seed_gives_one_world(self):
        self.assertEqual(scenes(3, False), scenes(3, False))
        self.assertNotEqual(scenes(3, False), scenes(4, False))

    def test_every_size_of_every_family_has_questions(self):
        for scene in scenes(5, False) + scenes(5, True):
            self.assertTrue(scene.passage)
            self.assertTrue(scene.questions)
            for question in scene.questions:
                self.assertTrue(question.text.endswith("?"))
                self.assertTrue((question.text + question.answer).isascii())

    def test_the_splits_share_no_entity(self):
        ordinary = {"Name", "Town", "Job", "Phone", "Item", "Friend", "The",
                    "He", "She"}
        train = entities([s.passage for s in scenes(6, False, 60)], ordinary)
        held_out = entities([s.passage for s in scenes(6, True, 60)], ordinary)
        self.assertGreater(len(train), 500)
        self.assertGreater(len(held_out), 500)
        self.assertEqual(train & held_out, set())
        for word in held_out:
            self.assertTrue(words.is_held_out(word), word)
        for word in train:
            self.assertFalse(words.is_held_out(word), word)

    def test_listed_nouns_are_split_too(self):
        listed = set(words.NOUNS)
        for held_out in (False, True):
            text = " ".join(s.passage for s in scenes(7, held_out, 60))
            used = listed & set(re.findall(r"[a-z]+", text))
            self.assertEqual({words.is_held_out(word) for word in used},
                             {held_out})

    def test_each_split_has_listed_words_of_each_kind(self):
        for kind in (words.WOMEN, words.MEN, words.TOWNS, words.RIVERS,
                     words.NOUNS):
            self.assertTrue(words.of_split(kind, True))
            self.assertTrue(words.of_split(kind, False))

    def test_copied_values_stand_in_the_passage(self):
        for family in ("records", "lists"):
            scene = world.make_scene(random.Random(8), family, 5, False)
            for question in scene.questions:
                self.assertIn(question.answer, scene.passage)

    def test_counts_and_ages_are_right(self):
        for seed in range(20):
            rng = random.Random(seed)
            scene = world.make_scene(rng, "counting", 6, False)
            for question in scene.questions:
                town = re.search(r"live in (\w+)", question.text).group(1)
                count = scene.passage.count(f" in {town}.")
                self.assertEqual(question.answer.split()[0].lower(),
                                 words.NUMBERS[count])
            scene = world.make_scene(rng, "comparing", 5, False)
            ages = dict(re.findall(r"(\w+) is (\d+) years", scene.passage))
            for question in scene.questions:
                left, right = re.search(
                    r"older, (\w+) or (\w+)\?", question.text).groups()
                older = max((left, right), key=lambda name: int(ages[name]))
                self.assertEqual(question.answer, f"{older} is older.")

    def test_two_hops_lead_home(self):
        scene = world.make_scene(random.Random(9), "two_hop", 6, False)
        for question in scene.questions:
            thing = re.search(r"owner of the (.*) live", question.text).group(1)
            owner = re.search(rf"(\w+) owns an? {thing}\.", scene.passage)
            home = re.search(rf"{owner.group(1)} lives in (\w+)\.",
                             scene.passage).group(1)
            self.assertEqual(question.answer, f"The owner lives in {home}.")


class ItemsTest(unittest.TestCase):
    def test_items_are_held_out_and_reproducible(self):
        items = eval_items.make_items(1, 3)
        self.assertEqual(items, eval_items.make_items(1, 3))
        self.assertEqual(len({item.id for item in items}), len(items))
        self.assertEqual({item.family for item in items}, set(world.FAMILIES))
        for item in items:
            self.assertTrue(item.prompt.endswith("\n" + item.bare_prompt))
            self.assertTrue(item.bare_prompt.startswith("Question: "))
            self.assertTrue(item.bare_prompt.endswith("\nAnswer:"))


if __name__ == "__main__":
    unittest.main()
