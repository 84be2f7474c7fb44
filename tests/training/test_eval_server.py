"""The judge of quality, against a stand-in server of known answers."""

import concurrent.futures
import unittest

import grpc

from training import eval_items, eval_server


class EvalServerTest(unittest.TestCase):
    def test_scores_are_those_of_the_answers(self):
        items = eval_items.make_items(3, 2)
        answer_of = {item.prompt: item.answer for item in items}
        people = [item for item in items if item.family == "people"]
        with eval_server.generated_stubs() as (pb2, pb2_grpc):
            class Stub(pb2_grpc.InferenceServicer):
                def Generate(self, request, context):
                    answer = answer_of.get(request.text, "no idea")
                    if request.path == pb2.DECODE_PATH_PRUNED:
                        answer = "no idea"
                    if (request.path == pb2.DECODE_PATH_TWO_STAGE
                            and request.text == people[0].prompt):
                        answer += " "
                    for part in (answer[:3], answer[3:]):
                        yield pb2.GenerateResponse(
                            delta=pb2.Delta(text=part))
                    yield pb2.GenerateResponse(completion=pb2.Completion())

            server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
            pb2_grpc.add_InferenceServicer_to_server(Stub(), server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            try:
                metrics = eval_server.score(f"127.0.0.1:{port}", items)
            finally:
                server.stop(None)
        self.assertEqual(metrics["full.lookup.exact"], 1.0)
        self.assertEqual(metrics["two_stage.people.exact"], 0.5)
        self.assertEqual(metrics["two_stage.lookup.exact"], 0.75)
        self.assertEqual(metrics["pruned.lists.exact"], 0.0)
        self.assertEqual(metrics["full.lookup.without_passage.exact"], 0.0)

    def test_met_is_computed(self):
        targets = {"a": {"target": 0.95, "met_when": "at_least"},
                   "b": {"target": 0.05, "met_when": "at_most"},
                   "c": {"target": 0.5, "met_when": "at_least"}}
        results = {r["metric"]: r for r in eval_server.judge(
            {"a": 0.95, "b": 0.06, "free": 0.3}, targets)}
        self.assertIs(results["a"]["met"], True)
        self.assertIs(results["b"]["met"], False)
        self.assertIs(results["c"]["met"], False)
        self.assertIsNone(results["c"]["value"])
        self.assertIsNone(results["free"]["met"])


if __name__ == "__main__":
    unittest.main()
