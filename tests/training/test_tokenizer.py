import json
import pathlib
import random
import string
import tempfile
import unittest

from training import build_demo, tokenizer as tok


def llama3_split(text: str):
    """Llama 3's pattern by hand, for ASCII, one alternative after another."""
    def run(at, accept, most=None):
        end = at
        while end < len(text) and accept(text[end]):
            if most is not None and end - at == most:
                break
            end += 1
        return end

    space = lambda c: c in " \t\n\r\f\v"
    letter = lambda c: c in string.ascii_letters
    digit = lambda c: c in string.digits
    other = lambda c: not (space(c) or letter(c) or digit(c))
    newline = lambda c: c in "\r\n"
    pieces, at = [], 0
    while at < len(text):
        lower = text[at:at + 3].lower()
        word_at = at + (not (newline(text[at]) or letter(text[at])
                             or digit(text[at])))
        symbol_at = at + (text[at] == " ")
        end = at
        if lower[:2] in ("'s", "'t", "'m", "'d"):
            end = at + 2
        elif lower in ("'re", "'ve", "'ll"):
            end = at + 3
        elif run(word_at, letter) > word_at:
            end = run(word_at, letter)
        elif digit(text[at]):
            end = run(at, digit, 3)
        elif run(symbol_at, other) > symbol_at:
            end = run(run(symbol_at, other), newline)
        else:
            blank = run(at, space)
            last = max((i for i in range(at, blank) if newline(text[i])),
                       default=None)
            if last is not None:
                end = last + 1
            elif blank == len(text) or blank - at == 1:
                end = blank
            else:
                end = blank - 1
        pieces.append(text[at:end])
        at = end
    return pieces


class SplitTest(unittest.TestCase):
    def test_the_pattern_equals_a_hand_written_splitter(self):
        rng = random.Random(1)
        alphabet = "aBz'sStTrevlLmd09  \t\n\r.,?:-" + string.punctuation
        for _ in range(20000):
            text = "".join(rng.choice(alphabet)
                           for _ in range(rng.randint(1, 14)))
            self.assertEqual(tok.split(text), llama3_split(text), repr(text))

    def test_the_worlds_text_is_split_alike(self):
        for text in build_demo.corpus(2, 40):
            self.assertEqual(tok.split(text), llama3_split(text))

    def test_other_text_is_refused(self):
        with self.assertRaises(ValueError):
            tok.split("Troms\u00f8")


class TokenizerTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.texts = build_demo.corpus(1, 60)
        cls.tokenizer = tok.train_tokenizer(cls.texts, 500)

    def test_text_comes_back(self):
        rng = random.Random(2)
        texts = self.texts + ["".join(map(chr, rng.choices(range(128), k=40)))
                              for _ in range(200)]
        for text in texts:
            self.assertEqual(
                self.tokenizer.decode(self.tokenizer.encode(text)), text)

    def test_training_is_reproducible_and_compresses(self):
        again = tok.train_tokenizer(self.texts, 500)
        self.assertEqual(again.merges, self.tokenizer.merges)
        text = self.texts[0]
        self.assertLess(len(self.tokenizer.encode(text)), len(text) / 1.5)

    def test_merges_are_the_commonest_pairs(self):
        merges = tok.BpeTrainer(["abab abab cd"]).train(2)
        self.assertEqual(merges, [("a", "b"), ("ab", "ab")])

    def test_an_answer_encodes_alike_alone_and_after_its_prompt(self):
        prompt, answer = "It is so.\nQuestion: Who?\nAnswer:", " Anna is 42."
        self.assertEqual(
            self.tokenizer.encode(prompt) + self.tokenizer.encode(answer),
            self.tokenizer.encode(prompt + answer))

    def test_the_file_is_what_hugging_face_reads(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            self.tokenizer.save(path, 1024)
            data = json.loads((path / "tokenizer.json").read_text("utf-8"))
            loaded = tok.Tokenizer.load(path)
            config = json.loads(
                (path / "tokenizer_config.json").read_text("utf-8"))
        self.assertEqual(loaded.vocab, self.tokenizer.vocab)
        model = data["model"]
        self.assertEqual(model["type"], "BPE")
        self.assertEqual(sorted(model["vocab"].values()), list(range(498)))
        for left, right in model["merges"]:
            self.assertIn(left, model["vocab"])
            self.assertIn(right, model["vocab"])
            self.assertIn(left + right, model["vocab"])
        self.assertEqual([t["id"] for t in data["added_tokens"]], [498, 499])
        split, byte_level = data["pre_tokenizer"]["pretokenizers"]
        self.assertEqual(split["pattern"]["Regex"], tok.LLAMA3_PATTERN)
        self.assertFalse(byte_level["use_regex"])
        self.assertEqual(config["eos_token"], tok.EOS)


if __name__ == "__main__":
    unittest.main()
