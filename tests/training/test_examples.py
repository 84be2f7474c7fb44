"""Training data: lines, chats, rows on disk, and the order they come in."""

import json
import pathlib
import random
import re
import shutil
import tempfile
import unittest

import numpy as np

from training import example_cache, examples
from training.errors import UserError
from training.example_cache import Encoding

BOS, END = 1, 2


class Letters:
    """One id per letter; <s> and <e> are control tokens where parsed."""

    bos_id, eos_id, eos_ids = BOS, END, [END]
    digest, vocab_size = "letters", 200

    def __init__(self, style="plain"):
        self.style = style

    def encode_all(self, texts, add_bos=False, parse_special=False):
        rows = []
        for text in texts:
            if "\x07" in text:
                raise UserError("a bell cannot be encoded")
            row = [BOS] if add_bos else []
            for piece in re.split("(<s>|<e>)", text):
                if parse_special and piece in ("<s>", "<e>"):
                    row.append(BOS if piece == "<s>" else END)
                else:
                    row += [ord(letter) % 197 + 3 for letter in piece]
            rows.append(row)
        return rows

    def render_chat(self, messages, add_generation_prompt=False):
        text = "<s>"
        for at, message in enumerate(messages):
            said = message["content"]
            if message["role"] == "assistant":
                is_last = at == len(messages) - 1
                if self.style == "thinks" and is_last:
                    said = "(hm)" + said
                text += "A:" + said + (
                    "" if self.style == "endless" else "<e>\n")
            else:
                text += message["role"][0] + ":" + said + "\n"
        return text + ("A:" if add_generation_prompt else "")

    def ids(self, text):
        return self.encode_all([text], False, True)[0]


def chat(*texts):
    return {"messages": [
        {"role": ("user", "assistant")[at % 2], "content": text}
        for at, text in enumerate(texts)]}


def rows_of(raw, tokenizer=None, **options):
    example = examples.parse_line(
        json.dumps(raw).encode(), "f:1", **options)
    return [row for _, row in examples.encode(
        tokenizer or Letters(), [example])]


class LineTest(unittest.TestCase):
    def test_prompt_and_answer_are_tokenised_apart(self):
        (row,) = rows_of({"prompt": "abc<e>", "answer": " de", "more": 1})
        prompt = Letters().encode_all(["abc<e>"], True)[0]
        answer = Letters().encode_all([" de"])[0] + [END]
        self.assertEqual(row.ids, prompt + answer)
        self.assertEqual(row.answers, [(len(prompt), len(answer))])
        self.assertNotIn(END, prompt)  # a user's text is no control token

    def test_all_forms_of_a_chat_are_one(self):
        said = chat("q", "a")
        gpt = {"conversations": [{"from": "human", "value": "q"},
                                 {"from": "gpt", "value": "a"}]}
        plain = {"prompt": "q", "answer": "a"}
        self.assertEqual(rows_of(said), rows_of(gpt))
        self.assertEqual(rows_of(said), rows_of(plain, use_template=True))

    def test_every_answer_has_all_before_it_as_its_prompt(self):
        tokenizer = Letters()
        said = chat("one", "two", "three", "four", "five")  # five: unanswered
        (row,) = rows_of(said)
        text = "<s>u:one\nA:two<e>\nu:three\nA:four<e>"
        self.assertEqual(row.ids, tokenizer.ids(text))
        for (start, length), answer, prompt in zip(
                row.answers, ("two<e>", "four<e>"),
                ("<s>u:one\nA:", "<s>u:one\nA:two<e>\nu:three\nA:")):
            self.assertEqual(row.ids[:start], tokenizer.ids(prompt))
            self.assertEqual(row.ids[start:start + length],
                             tokenizer.ids(answer))
        self.assertEqual(len(row.answers), 2)

    def test_a_template_that_rewrites_earlier_turns_gives_a_row_each(self):
        tokenizer = Letters("thinks")
        rows = rows_of(chat("one", "two", "three", "four"), tokenizer)
        self.assertEqual([row.ids for row in rows], [
            tokenizer.ids("<s>u:one\nA:(hm)two<e>"),
            tokenizer.ids("<s>u:one\nA:two<e>\nu:three\nA:(hm)four<e>")])
        self.assertEqual(rows[1].answers, [(
            len(tokenizer.ids("<s>u:one\nA:two<e>\nu:three\nA:")),
            len("(hm)four") + 1)])

    def test_answers_without_an_end_are_given_one(self):
        tokenizer = Letters("endless")
        rows = rows_of(chat("one", "two", "three", "four"), tokenizer)
        self.assertEqual([row.ids for row in rows], [
            tokenizer.ids("<s>u:one\nA:two") + [END],
            tokenizer.ids("<s>u:one\nA:twou:three\nA:four") + [END]])

    def test_bad_lines_are_named(self):
        deep = b'{"prompt":' + b"[" * 100_000
        for line, message in (
                (b"nonsense", "not valid JSON"), (b"[1]", "no JSON object"),
                (b'{"prompt": "a\xff", "answer": "b"}', "not valid JSON"),
                (b'{"prompt": "a", "prompt": "b"}', "comes twice"),
                (b'{"prompt": "a", "answer": NaN}', "not valid JSON"),
                (deep, "nested too deeply"), (b"{}", "must have one of"),
                (b'{"prompt": "a"}', "answer is missing"),
                (b'{"prompt": 5, "answer": "b"}', "prompt must be a string"),
                (b'{"prompt": "a", "answer": ["b"]}', "answer must be"),
                (b'{"prompt": "a", "answer": " "}', "answer is empty"),
                (b'{"prompt": "\\ud800", "answer": "b"}', "surrogate"),
                (b'{"prompt": "a", "messages": []}', "must have one of"),
                (b'{"messages": []}', "2 to 1000 messages"),
                (b'{"messages": "ab"}', "2 to 1000 messages"),
                (b'{"messages": [1, 2]}', "message 1: is no object")):
            with self.assertRaisesRegex(UserError, "f:9: .*" + message):
                examples.parse_line(line, "f:9")
        for messages, message in (
                ([("user", "a"), ("robot", "b")], "message 2: role must be"),
                ([("assistant", "a"), ("user", "b")],
                 "message 1: an answer without a question"),
                ([("user", "a"), ("assistant", "")], "2: the answer is empty"),
                ([("user", "a"), ("user", "b")], "holds no answer"),
                ([("user", "a"), ("assistant", 3)], "content must be")):
            raw = {"messages": [{"role": role, "content": text}
                                for role, text in messages]}
            with self.assertRaisesRegex(UserError, "f:9: .*" + message):
                examples.parse_line(json.dumps(raw).encode(), "f:9")
        self.assertIsNone(examples.parse_line(b" \r\n", "f:9"))

    def test_a_line_that_cannot_be_encoded_is_named(self):
        parsed = [examples.Example(f"f:{n}", "a", text)
                  for n, text in enumerate(("b", "c\x07", "d"), start=1)]
        with self.assertRaisesRegex(UserError, "^f:2: a bell"):
            examples.encode(Letters(), parsed)

    def test_the_end_is_cut_off(self):
        row = examples.Row(list(range(20)), [(3, 4), (9, 8), (18, 2)])
        self.assertIs(examples.cut(row, 20), row)
        self.assertEqual(examples.cut(row, 12),
                         (list(range(12)), [(3, 4), (9, 3)]))
        self.assertEqual(examples.cut(row, 9).answers, [(3, 4)])
        self.assertIsNone(examples.cut(row, 3))


class CacheTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.data = self.folder / "data.jsonl"
        self.said = []

    def build(self, lines, tokenizer=None, encoding=Encoding(64)):
        self.data.write_bytes(b"\n".join(
            line if isinstance(line, bytes) else json.dumps(line).encode()
            for line in lines))
        cache = example_cache.cache_folder(
            self.folder / "run", self.data, tokenizer or Letters(),
            self.folder, encoding)
        example_cache.build(cache, self.data, tokenizer or Letters(),
                            encoding, self.said.append)
        return cache, example_cache.Rows(cache)

    def test_rows_come_back(self):
        lines = [chat("q" * n, "a" * n, "r", "b") for n in range(1, 700)]
        _, rows = self.build(lines + [b"", {"prompt": "x" * 70,
                                            "answer": "y"}])
        whole = [rows_of(line)[0] for line in lines]
        # "<s>u:" + q + "\nA:" is the first prompt.
        expected = [examples.cut(row, 64) for n, row in enumerate(whole, 1)
                    if n + 6 < 64]
        self.assertEqual(len(rows), len(expected))
        for at, row in enumerate(expected):
            ids, answers = rows[at]
            self.assertEqual(ids.tolist(), row.ids)
            self.assertEqual(answers.tolist(), [list(a) for a in row.answers])
        self.assertEqual(rows.counts["lines"], 700)
        self.assertEqual(rows.counts["dropped"], 700 - len(expected))
        self.assertEqual(rows.counts["cut"],
                         sum(len(row.ids) > 64
                             for row in whole[:len(expected)]))
        batch = rows.batch([3, 0], 7)
        self.assertEqual(batch.ids[1, :len(expected[0].ids)].tolist(),
                         expected[0].ids)
        self.assertEqual(int(batch.ids[1, -1]), 7)
        self.assertEqual([a.row for a in batch.spans], [0, 0, 1, 1])

    def test_it_is_made_once_for_the_same_content(self):
        lines = [{"prompt": "a", "answer": "b"}]
        first, _ = self.build(lines)
        (first / "complete.json").touch()
        stamp = (first / "ids.bin").stat().st_mtime_ns
        self.assertEqual(self.build(lines)[0], first)
        self.assertEqual((first / "ids.bin").stat().st_mtime_ns, stamp)
        self.assertNotEqual(self.build(lines + lines)[0], first)
        self.assertNotEqual(
            self.build(lines, encoding=Encoding(32))[0], first)

    def test_a_bad_line_leaves_nothing(self):
        good = {"prompt": "a", "answer": "b"}
        huge = b'{"prompt": "' + b"a" * examples.MAX_LINE_BYTES + b'"'
        for bad, message in ((b"{", "data.jsonl:301: not valid JSON"),
                             (huge, "data.jsonl:301: the line is longer")):
            with self.assertRaisesRegex(UserError, message):
                self.build([good] * 300 + [bad])
            self.assertEqual(list((self.folder / "run").iterdir()), [])
        with self.assertRaisesRegex(UserError, "no example is left of 0"):
            self.build([b""])
        with self.assertRaisesRegex(UserError, "no example is left of 1"):
            self.build([{"prompt": "a" * 99, "answer": "b"}])
        self.data.unlink()
        with self.assertRaisesRegex(UserError, "data.jsonl: no such file"):
            example_cache.cache_folder(self.folder, self.data, Letters(),
                                       self.folder, Encoding(64))

    def test_other_languages_are_left_out(self):
        lines = [{**chat("q", "a"), "langdetect": code}
                 for code in ("en", "de", "en")] + [chat("q", "a")]
        _, rows = self.build(lines, encoding=Encoding(64, language="en"))
        self.assertEqual((len(rows), rows.counts["other_language"]), (2, 2))

    def test_each_epoch_has_each_row_once_and_ranks_share_a_step(self):
        seed = random.randrange(10 ** 6)
        print(f"seed {seed}")
        _, rows = self.build([
            {"prompt": chr(97 + n) * (n % 9 + 1), "answer": "b"}
            for n in range(24)])
        indices = np.arange(2, 22)

        def sampler(world=1, micro=2):
            return example_cache.Sampler(
                rows, indices, seed, 4, micro, world, END)

        one = sampler()
        self.assertEqual(one.num_steps(1), 5)
        self.assertEqual(one.num_steps(1.1), 6)
        epochs = [np.concatenate([one.step_rows(step)
                                  for step in range(e * 5, e * 5 + 5)])
                  for e in range(2)]
        for epoch in epochs:
            self.assertEqual(sorted(epoch), list(indices))
        self.assertNotEqual(list(epochs[0]), list(epochs[1]))
        # A run that begins elsewhere sees the same; so do two processes.
        late = sampler()
        self.assertTrue(np.array_equal(late.step_rows(7),
                                       one.step_rows(7)))
        lengths = rows.lengths[one.step_rows(7)]
        self.assertTrue((np.diff(lengths) <= 0).all())
        two = sampler(world=2, micro=1)
        whole = [row for micro in range(2)
                 for row in one.batch_at(7, micro, 0).ids.tolist()]
        parts = [two.batch_at(7, micro, rank).ids[0].tolist()
                 for micro in range(2) for rank in range(2)]
        for row, part in zip(whole, parts):
            self.assertEqual(row[:len(part)], part)
            self.assertTrue(all(t == END for t in row[len(part):]))

    def test_held_out_lines_are_nowhere_in_training(self):
        _, rows = self.build(
            [chat("q", "a", "r", "b") for _ in range(50)], Letters("thinks"))
        self.assertEqual(len(rows), 100)
        train, dev = example_cache.split_lines(rows, 0.1, 5)
        self.assertEqual(len(set(rows.lines[dev])), 5)
        self.assertFalse(set(rows.lines[dev]) & set(rows.lines[train]))
        self.assertEqual(len(train) + len(dev), 100)
        again = example_cache.split_lines(rows, 0.1, 5)
        self.assertTrue(np.array_equal(again[1], dev))
        batches = example_cache.DevBatches(rows, dev, 3, END)
        self.assertEqual([len(batches[n].ids) for n in range(len(batches))],
                         [3, 3, 3, 1])


if __name__ == "__main__":
    unittest.main()
