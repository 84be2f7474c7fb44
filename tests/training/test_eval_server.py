"""The scores of the bundled pair, against a stand-in of known answers."""

import unittest

from training import eval_items, eval_server
from training.judge import served

from tests.training.stand_in import stand_in


class EvalServerTest(unittest.TestCase):
    def test_scores_are_those_of_the_answers(self):
        items = eval_items.make_items(3, 2)
        right = {item.prompt: item.answer for item in items}
        people = [item for item in items if item.family == "people"]

        def answer_of(path, prompt):
            if path == "pruned":
                return "no idea"
            if path == "two_stage" and prompt == people[0].prompt:
                return right[prompt] + " "
            return right.get(prompt, "no idea")

        with served.generated_stubs() as stubs, \
                stand_in(stubs, answer_of) as client:
            metrics = eval_server.score(client, items)
        self.assertEqual(metrics["full.lookup.exact"], 1.0)
        self.assertEqual(metrics["two_stage.people.exact"], 0.5)
        self.assertEqual(metrics["two_stage.lookup.exact"], 0.75)
        self.assertEqual(metrics["pruned.lists.exact"], 0.0)
        self.assertEqual(metrics["full.lookup.without_passage.exact"], 0.0)


if __name__ == "__main__":
    unittest.main()
