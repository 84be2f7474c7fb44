import datetime
import json
import os
import pathlib
import random
import shutil
import string
import tempfile
import types
import unittest
from unittest import mock

from training import text_tokenizer
from training import tokenizer as plain
from training.errors import UserError

DEMO = pathlib.Path("models/demo/full")
NOW = datetime.datetime(2024, 7, 26)
# Much as Llama 3's is written; the blanks show trim_blocks and lstrip_blocks.
TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception('no role ' + message['role']) }}
    {%- endif %}
<{{ message['role'] }}>
    {% if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ '' -}}
    {{ eos_token }}
    {% else %}
{{ message['content'] | trim }}
    {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{{ strftime_now("%d %b %Y") }}
{% endif %}"""


def without_program(transformers=None):
    return (mock.patch.object(text_tokenizer, "find_program", lambda: None),
            mock.patch.dict("sys.modules", {"transformers": transformers}))


class FakeTransformers:
    """As much of the package as is used. `obeys`: split_special_tokens."""

    bos_token_id, eos_token_id, all_special_ids = 2, 3, [2, 3]
    added_tokens_decoder = {3: types.SimpleNamespace(special=True)}

    def __init__(self, obeys: bool) -> None:
        self.AutoTokenizer = self
        self.obeys = obeys

    def from_pretrained(self, folder: str, local_files_only: bool,
                        trust_remote_code: bool):
        if not local_files_only or trust_remote_code:
            raise AssertionError("it may reach out")
        return self

    def get_vocab(self):
        return {"a": 0, "b": 1, "<s>": 2, "<e>": 3}

    def __call__(self, text: str, add_special_tokens: bool = True,
                 split_special_tokens: bool = False):
        parses = not split_special_tokens or not self.obeys
        found = ["ab".index(c) for c in text.replace("<e>", "")]
        return {"input_ids": [2] * add_special_tokens + found
                + [3] * (parses and "<e>" in text)}

    def decode(self, ids, skip_special_tokens: bool,
               clean_up_tokenization_spaces: bool) -> str:
        return "".join("ab"[i] for i in ids if i < 2)


def ascii_texts(rng: random.Random, count: int):
    letters = string.printable
    pieces = ["Anna lives in", " 12345", "<|end_of_text|>", "it's", "\r\n \n",
              "<|begin_of_text|>", "    x"]
    for _ in range(count):
        yield "".join(
            rng.choice(pieces) if rng.random() < 0.3 else rng.choice(letters)
            for _ in range(rng.randrange(0, 40)))


def folder_with(parent: str, **config) -> pathlib.Path:
    """The demo's tokenizer with some fields of tokenizer_config.json."""
    folder = pathlib.Path(parent)
    shutil.copy(DEMO / "tokenizer.json", folder)
    data = json.loads((DEMO / "tokenizer_config.json").read_text())
    data.update(config)
    (folder / "tokenizer_config.json").write_text(json.dumps(data))
    return folder


@unittest.skipIf(text_tokenizer.find_program() is None,
                 "overfill-tokenize is not built")
class ProgramTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.tokenizer = text_tokenizer.load(DEMO)
        cls.reference = plain.Tokenizer.load(DEMO)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.tokenizer.close()

    def test_ascii_text_equals_the_python_tokenizer(self):
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        texts = list(ascii_texts(random.Random(seed), 3000))
        for add_bos in (False, True):
            rows = self.tokenizer.encode_all(texts, add_bos)
            self.assertEqual(len(rows), len(texts))
            for text, row in zip(texts, rows):
                self.assertEqual(row, self.reference.encode(text, add_bos),
                                 repr(text))
        for text in texts[:50]:
            self.assertEqual(self.tokenizer.decode(
                self.tokenizer.encode(text, True)), text)

    def test_what_it_says_of_the_model(self):
        self.assertEqual(self.tokenizer.bos_id, self.reference.bos_id)
        self.assertEqual(self.tokenizer.eos_id, self.reference.eos_id)
        self.assertEqual(self.tokenizer.eos_ids, [self.reference.eos_id])
        self.assertEqual(self.tokenizer.vocab_size, self.reference.vocab_size)
        self.assertRegex(self.tokenizer.digest, "^[0-9a-f]{64}$")

    def test_control_tokens_come_from_parsed_text_alone(self):
        text = "a<|end_of_text|>b"
        eos = self.tokenizer.eos_id
        self.assertNotIn(eos, self.tokenizer.encode(text))
        parsed = self.tokenizer.encode(text, parse_special=True)
        self.assertEqual(parsed, [*self.reference.encode("a"), eos,
                                  *self.reference.encode("b")])
        self.assertEqual(self.tokenizer.decode(parsed), "ab")
        self.assertEqual(self.tokenizer.decode(parsed, skip_special=False),
                         text)

    def test_hostile_text(self):
        # The pipe carries lines; none of these may end or split one.
        texts = ["", "\n", "\r\n\u2028\u2029\x85", "\0\x01\x7f", "é" * 5000,
                 "\U0001f600\u200d\ufeff", "{\"info\": true}\n", "\\ud800",
                 "x" * 300_000, "' \" \\"]
        rows = self.tokenizer.encode_all(texts)
        for text, row in zip(texts, rows):
            self.assertEqual(self.tokenizer.decode(row), text, repr(text[:20]))
            self.assertEqual(self.tokenizer.encode(text), row)
        with self.assertRaisesRegex(UserError, "surrogate at character 2"):
            self.tokenizer.encode("ab\ud800")
        for bad in (-1, 1 << 31, (1 << 64) - 1):
            with self.assertRaisesRegex(UserError, "is no token id"):
                self.tokenizer.decode([bad])
        # And the process is still in step.
        self.assertEqual(self.tokenizer.encode("a"),
                         self.reference.encode("a"))

    def test_many_texts_make_many_requests_in_order(self):
        texts = [str(n) for n in range(5000)]
        rows = self.tokenizer.encode_all(iter(texts))
        self.assertEqual([self.tokenizer.decode(row) for row in rows[-5:]],
                         texts[-5:])
        self.assertEqual(len(rows), 5000)

    def test_a_forked_child_asks_its_own_process(self):
        child = os.fork()
        if child == 0:
            right = self.tokenizer.encode("b") == self.reference.encode("b")
            os._exit(0 if right else 1)
        for _ in range(50):
            self.assertEqual(self.tokenizer.encode("a"),
                             self.reference.encode("a"))
        self.assertEqual(os.waitpid(child, 0)[1], 0)

    def test_a_process_that_dies_is_named(self):
        tokenizer = text_tokenizer.load(DEMO)
        tokenizer._backend._process.kill()
        tokenizer._backend._process.wait()
        with self.assertRaisesRegex(UserError, "ended with status"):
            tokenizer.encode("a")
        self.assertEqual(tokenizer.encode("a"), self.reference.encode("a"))
        tokenizer.close()

    def test_a_broken_file_is_named(self):
        with tempfile.TemporaryDirectory() as parent:
            path = pathlib.Path(parent) / "tokenizer.json"
            with self.assertRaisesRegex(UserError, "tokenizer.json: no such"):
                text_tokenizer.load(parent)
            for text in ("{", "[]", '{"model": {"type": "Unigram"}}'):
                path.write_text(text)
                with self.assertRaisesRegex(UserError, str(path)):
                    text_tokenizer.load(parent)
            with open(path, "wb") as sparse:
                sparse.truncate(text_tokenizer.MAX_FILE_BYTES + 1)
            with self.assertRaisesRegex(UserError, "is larger than"):
                text_tokenizer.load(parent)

    def test_the_environment_names_the_program(self):
        with mock.patch.dict(os.environ, {"OVERFILL_TOKENIZE": "/no/such"}):
            with self.assertRaisesRegex(UserError, "OVERFILL_TOKENIZE=/no/s"):
                text_tokenizer.load(DEMO)
        with mock.patch.dict(os.environ, {"OVERFILL_TOKENIZE": "/bin/false"}):
            with self.assertRaisesRegex(UserError, "/bin/false: ended with"):
                text_tokenizer.load(DEMO)


class PlainTest(unittest.TestCase):
    def test_without_the_program_its_own_files_alone_are_read(self):
        no_program, no_transformers = without_program()
        with no_program, no_transformers:
            tokenizer = text_tokenizer.load(DEMO)
            reference = plain.Tokenizer.load(DEMO)
            text = "Anna<|end_of_text|> lives"
            self.assertEqual(tokenizer.encode(text, True),
                             reference.encode(text, True))
            parsed = tokenizer.encode(text, parse_special=True)
            self.assertEqual(parsed.count(reference.eos_id), 1)
            self.assertEqual(tokenizer.decode(parsed, False), text)
            with self.assertRaisesRegex(UserError, "not ASCII"):
                tokenizer.encode("é")
            with tempfile.TemporaryDirectory() as parent:
                folder = folder_with(parent)
                path = folder / "tokenizer.json"
                data = json.loads(path.read_text())
                data["normalizer"] = {"type": "NFC"}
                path.write_text(json.dumps(data))
                with self.assertRaisesRegex(UserError, "run ./dev build"):
                    text_tokenizer.load(folder)


class TransformersTest(unittest.TestCase):
    """By a stand-in, as the package is nowhere needed."""

    def load(self, obeys: bool):
        no_program, package = without_program(FakeTransformers(obeys))
        with no_program, package:
            return text_tokenizer.load(DEMO)

    def test_it_is_asked_as_it_should_be(self):
        tokenizer = self.load(obeys=True)
        self.assertEqual(tokenizer.vocab_size, 4)
        self.assertEqual((tokenizer.bos_id, tokenizer.eos_id), (2, 3))
        self.assertEqual(tokenizer.encode("ab<e>"), [0, 1])
        self.assertEqual(tokenizer.encode("a", add_bos=True), [2, 0])
        self.assertEqual(tokenizer.encode("a<e>", parse_special=True), [0, 3])
        self.assertEqual(tokenizer.decode([2, 0, 1]), "ab")

    def test_a_control_token_of_plain_text_is_an_error(self):
        tokenizer = self.load(obeys=False)
        self.assertEqual(tokenizer.encode("ab", add_bos=True), [2, 0, 1])
        with self.assertRaisesRegex(UserError, "made a control token"):
            tokenizer.encode("a<e>")


class ChatTest(unittest.TestCase):
    def setUp(self) -> None:
        try:
            import jinja2  # noqa: F401
        except ImportError:
            self.skipTest("python3-jinja2 is not installed")
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.parent = made.name

    def load(self, **config) -> text_tokenizer.TextTokenizer:
        tokenizer = text_tokenizer.load(folder_with(self.parent, **config),
                                        NOW)
        self.addCleanup(tokenizer.close)
        return tokenizer

    def test_a_chat_as_transformers_writes_it(self):
        tokenizer = self.load(chat_template=TEMPLATE)
        messages = [{"role": "user", "content": " hi <b> "},
                    {"role": "assistant", "content": "yes"}]
        text = tokenizer.render_chat(messages)
        self.assertEqual(
            text, "<|begin_of_text|><user>\nhi <b>\n"
            "<assistant>\nyes<|end_of_text|>\n")
        ids = tokenizer.encode(text, parse_special=True)
        self.assertEqual(ids[0], tokenizer.bos_id)
        self.assertEqual(ids.count(tokenizer.eos_id), 1)
        opened = tokenizer.render_chat(messages[:1], True)
        self.assertTrue(opened.endswith("<assistant>26 Jul 2024\n"), opened)

    def test_where_templates_are(self):
        messages = [{"role": "user", "content": "x"}]
        named = [{"name": "tool_use", "template": "no"},
                 {"name": "default", "template": "named {{ eos_token }}"}]
        tokenizer = self.load(chat_template=named,
                              eos_token={"content": "<|end_of_text|>"})
        self.assertEqual(tokenizer.render_chat(messages),
                         "named <|end_of_text|>")
        path = pathlib.Path(self.parent) / "chat_template.jinja"
        path.write_text("own {{ messages | tojson }}\n")
        self.assertEqual(self.load(chat_template=named).render_chat(messages),
                         'own [{"role": "user", "content": "x"}]')

    def test_templates_that_fail_are_named(self):
        messages = [{"role": "tool", "content": "x"}]
        for template, said in (
                (TEMPLATE, "no role tool"),
                ("{% if %}", "chat template"),
                ("{{ messages.append(1) }}", "unsafe"),
                ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe")):
            tokenizer = self.load(chat_template=template)
            with self.assertRaisesRegex(UserError, said):
                tokenizer.render_chat(messages)
        with self.assertRaisesRegex(UserError, "has no chat template"):
            self.load().render_chat(messages)

    def test_the_ids_that_end_an_answer(self):
        path = pathlib.Path(self.parent) / "generation_config.json"
        path.write_text('{"eos_token_id": [3, 4]}')
        self.assertEqual(self.load().eos_ids, [3, 4])
        path.write_text('{"eos_token_id": "x"}')
        with self.assertRaisesRegex(UserError, "eos_token_id is no list"):
            self.load()


if __name__ == "__main__":
    unittest.main()
