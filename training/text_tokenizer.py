"""A checkpoint's tokenizer: the ids that the server would see, and its chats.

The work is done by `overfill-tokenize`, which is the server's own tokenizer;
where that is not built, by `transformers`, else by training.tokenizer for the
plain files that it writes itself.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from typing import Any, Dict, Iterable, List, Optional, Sequence, Union

from training import chat_template
from training import tokenizer as plain_tokenizer
from training.errors import UserError

MAX_FILE_BYTES = 64 << 20  # as the server's
PROGRAM = "overfill-tokenize"
_BUILT = (pathlib.Path(__file__).resolve().parents[1]
          / "build/release/engine/tokenizer" / PROGRAM)
# What one request to the program may hold; more texts make more requests.
_BATCH_TEXTS = 1024
_BATCH_CHARACTERS = 1 << 20

Messages = Sequence[Dict[str, Any]]


def find_program() -> Optional[str]:
    """$OVERFILL_TOKENIZE, the release build's, or the PATH's."""
    named = os.environ.get("OVERFILL_TOKENIZE")
    if named:
        if not os.access(named, os.X_OK) or os.path.isdir(named):
            raise UserError(f"OVERFILL_TOKENIZE={named}: no such program")
        return named
    if os.access(_BUILT, os.X_OK):
        return str(_BUILT)
    return shutil.which(PROGRAM)


class _Program:
    """The server's tokenizer as a process that lives as long as this."""

    def __init__(self, program: str, folder: pathlib.Path) -> None:
        self._command = [program, str(folder)]
        self._process: Optional[subprocess.Popen] = None
        self._owner = 0
        info = self._ask({"info": True})
        self.bos_id: Optional[int] = info["bos_id"]
        self.eos_id: Optional[int] = info["eos_id"]
        self.vocab_size: int = info["vocab_size"]

    def encode_all(self, texts: Sequence[str], add_bos: bool,
                   parse_special: bool) -> List[List[int]]:
        return self._ask({"texts": list(texts), "add_special_tokens": add_bos,
                          "parse_special": parse_special})

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return self._ask({"ids": list(ids),
                          "skip_special_tokens": skip_special})

    def _ask(self, request: Dict[str, Any]) -> Any:
        # A forked child must not share the pipes with its parent.
        if self._process is None or self._owner != os.getpid():
            self._start()
        line = json.dumps(request).encode("ascii") + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer_line = self._process.stdout.readline()
        except BrokenPipeError:
            answer_line = b""
        if not answer_line:
            raise UserError(self._end())
        answer = json.loads(answer_line.decode("utf-8"))
        if isinstance(answer, dict) and "error" in answer:
            raise UserError(f"{self._command[1]}: {answer['error']}")
        return answer

    def _start(self) -> None:
        # A file, not a pipe: a full pipe that nobody reads would block both.
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._errors)
        except OSError as error:
            raise UserError(f"{self._command[0]}: {error.strerror}") from None
        self._owner = os.getpid()

    def _end(self) -> str:
        """Why the process ended."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip()
        self.close()
        return said or f"{self._command[0]}: ended with status {code}"

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        for pipe in (process.stdin, process.stdout, self._errors):
            try:
                pipe.close()  # the end of its input ends the process
            except OSError:
                pass  # what was left to write
        process.wait()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()


class _Transformers:
    def __init__(self, auto_tokenizer: Any, folder: pathlib.Path) -> None:
        try:
            self._inner = auto_tokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # it raises whatever it likes
            raise UserError(f"{folder}: transformers: {error}") from None
        self.bos_id: Optional[int] = self._inner.bos_token_id
        self.eos_id: Optional[int] = self._inner.eos_token_id
        self.vocab_size: int = max(self._inner.get_vocab().values()) + 1
        self._special = set(self._inner.all_special_ids) | {
            index for index, token
            in self._inner.added_tokens_decoder.items() if token.special}

    def encode_all(self, texts: Sequence[str], add_bos: bool,
                   parse_special: bool) -> List[List[int]]:
        rows = [self._inner(text, add_special_tokens=add_bos,
                            split_special_tokens=not parse_special)
                ["input_ids"] for text in texts]
        if not parse_special:
            around = set(self._inner("")["input_ids"]) if add_bos else set()
            for text, row in zip(texts, rows):
                if self._special.intersection(row) - around:
                    raise UserError("transformers made a control token of the "
                                    f"text {text[:40]!r}; use {PROGRAM}")
        return rows

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=skip_special,
                                  clean_up_tokenization_spaces=False)

    def close(self) -> None:
        pass


class _Plain:
    """training.tokenizer, for a file that equals what it would write."""

    def __init__(self, inner: plain_tokenizer.Tokenizer) -> None:
        self._inner = inner
        self.bos_id: Optional[int] = inner.bos_id
        self.eos_id: Optional[int] = inner.eos_id
        self.vocab_size: int = inner.vocab_size
        self._special = {plain_tokenizer.BOS: inner.bos_id,
                         plain_tokenizer.EOS: inner.eos_id}

    @staticmethod
    def of(data: Dict[str, Any]) -> Optional["_Plain"]:
        try:
            merges = [(str(a), str(b)) for a, b in data["model"]["merges"]]
            inner = plain_tokenizer.Tokenizer(merges)
        except (KeyError, TypeError, ValueError):
            return None
        return _Plain(inner) if inner.to_json() == data else None

    def encode_all(self, texts: Sequence[str], add_bos: bool,
                   parse_special: bool) -> List[List[int]]:
        return [([self.bos_id] if add_bos else [])
                + self._encode(text, parse_special) for text in texts]

    def _encode(self, text: str, parse_special: bool) -> List[int]:
        if not text.isascii():
            raise UserError("this text is not ASCII, and the tokenizer for "
                            f"other text is not built: ./dev build ({PROGRAM})")
        pieces = [text]
        if parse_special:
            names = "|".join(re.escape(name) for name in self._special)
            pieces = re.split(f"({names})", text)
        ids: List[int] = []
        for index, piece in enumerate(pieces):
            if index % 2 == 1:
                ids.append(self._special[piece])
            else:
                ids += self._inner.encode(piece)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        if skip_special:
            return self._inner.decode(ids)
        names = {index: name for name, index in self._special.items()}
        text, run = "", []
        for index in ids:
            if index in names:
                text += self._inner.decode(run) + names[index]
                run = []
            else:
                run.append(index)
        return text + self._inner.decode(run)

    def close(self) -> None:
        pass


_Backend = Union[_Program, _Transformers, _Plain]


class TextTokenizer:
    """Of one folder; `load` makes them."""

    def __init__(self, folder: pathlib.Path, backend: _Backend, digest: str,
                 now: datetime.datetime) -> None:
        self._folder = folder
        self._backend = backend
        self._now = now
        self._chat: Optional[chat_template.ChatTemplate] = None
        self.digest = digest  # SHA-256 of tokenizer.json, hex
        self.vocab_size = backend.vocab_size  # the highest id + 1
        self.bos_id = backend.bos_id
        self.eos_ids = _generation_eos(folder)
        self.eos_id = backend.eos_id
        if self.eos_id is None and self.eos_ids:
            self.eos_id = self.eos_ids[0]
        if self.eos_id is not None and not self.eos_ids:
            self.eos_ids = [self.eos_id]

    def encode(self, text: str, add_bos: bool = False,
               parse_special: bool = False) -> List[int]:
        """`add_bos` adds what the server puts around a prompt, which is
        nothing for models without BOS. `parse_special` is for rendered chats:
        anything else never becomes control tokens."""
        return self.encode_all([text], add_bos, parse_special)[0]

    def encode_all(self, texts: Iterable[str], add_bos: bool = False,
                   parse_special: bool = False) -> List[List[int]]:
        rows: List[List[int]] = []
        batch: List[str] = []
        held = 0
        for text in texts:
            _check_text(text)
            batch.append(text)
            held += len(text)
            if len(batch) == _BATCH_TEXTS or held >= _BATCH_CHARACTERS:
                rows += self._backend.encode_all(batch, add_bos, parse_special)
                batch, held = [], 0
        if batch:
            rows += self._backend.encode_all(batch, add_bos, parse_special)
        return rows

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special)

    def render_chat(self, messages: Messages,
                    add_generation_prompt: bool = False) -> str:
        """The chat as the checkpoint's template writes it, BOS included where
        the template has it: encode it with add_bos=False and
        parse_special=True. A message that spells a control token gets one, as
        with every template."""
        if self._chat is None:
            self._chat = chat_template.load(self._folder, self._now)
        return self._chat.render(messages, add_generation_prompt)

    def close(self) -> None:
        self._backend.close()


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the text holds a lone surrogate at character "
                        f"{error.start}") from None


def _generation_eos(folder: pathlib.Path) -> List[int]:
    """The ids that end an answer: generation_config.json's, else config's."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        ids = chat_template.read_object(path).get("eos_token_id")
        if isinstance(ids, int):
            ids = [ids]
        if ids is None:
            continue
        if not isinstance(ids, list) or any(
                type(i) is not int or i < 0 for i in ids):
            raise UserError(f"{path}: eos_token_id is no list of ids")
        return ids
    return []


def _backend_of(folder: pathlib.Path, text: bytes) -> _Backend:
    program = find_program()
    if program is not None:
        return _Program(program, folder)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        pass
    else:
        return _Transformers(AutoTokenizer, folder)
    try:
        plain = _Plain.of(json.loads(text.decode("utf-8")))
    except (ValueError, RecursionError):
        plain = None
    if plain is not None:
        return plain
    raise UserError(f"{folder / 'tokenizer.json'}: reading it needs the "
                    f"program {PROGRAM}: run ./dev build, or name it in "
                    "OVERFILL_TOKENIZE")


def load(folder: Union[str, pathlib.Path],
         now: Optional[datetime.datetime] = None) -> TextTokenizer:
    """`now` is the day that templates may write down; today's by default."""
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    text = chat_template.read_file(path, MAX_FILE_BYTES)
    return TextTokenizer(folder, _backend_of(folder, text),
                         hashlib.sha256(text).hexdigest(),
                         now or datetime.datetime.now())
