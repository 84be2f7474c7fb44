"""Byte-level BPE: a trainer, an encoder, and Hugging Face's tokenizer.json.

The files are of the Llama 3 kind. Python's `re` knows no \\p{L}, so the split
here is Llama 3's pattern with its classes written out for ASCII; other text
is refused instead of being split slightly differently than a server would.
"""

from __future__ import annotations

import collections
import json
import pathlib
import re
from typing import Dict, Iterable, List, Sequence, Tuple

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

_SPACE = r" \t\n\r\f\v"
_ASCII_PATTERN = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}"
    rf"| ?[^{_SPACE}A-Za-z0-9]+[\r\n]*|[{_SPACE}]*[\r\n]+"
    rf"|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+")

Pair = Tuple[str, str]


def byte_alphabet() -> List[str]:
    """The printable character that stands for each byte, as GPT-2 chose."""
    printable = (set(range(0x21, 0x7F)) | set(range(0xA1, 0xAD))
                 | set(range(0xAE, 0x100)))
    alphabet = []
    next_free = 0x100
    for byte in range(256):
        if byte in printable:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(next_free))
            next_free += 1
    return alphabet


_ALPHABET = byte_alphabet()
_BYTE_OF = {character: byte for byte, character in enumerate(_ALPHABET)}


def split(text: str) -> List[str]:
    """The pieces that Llama 3's pattern cuts ASCII text into."""
    if not text.isascii():
        raise ValueError("the training tokenizer takes ASCII text only")
    return _ASCII_PATTERN.findall(text)


def _merge(symbols: Sequence[str], pair: Pair) -> List[str]:
    merged: List[str] = []
    index = 0
    while index < len(symbols):
        if tuple(symbols[index:index + 2]) == pair:
            merged.append(symbols[index] + symbols[index + 1])
            index += 2
        else:
            merged.append(symbols[index])
            index += 1
    return merged


class BpeTrainer:
    """Counts adjacent pairs over distinct pieces and merges the commonest."""

    def __init__(self, texts: Iterable[str]) -> None:
        counts: Dict[str, int] = collections.Counter(
            piece for text in texts for piece in split(text))
        self._words: List[List[str]] = []
        self._word_counts: List[int] = []
        self._pair_counts: Dict[Pair, int] = collections.Counter()
        self._words_with: Dict[Pair, set] = collections.defaultdict(set)
        for piece, count in sorted(counts.items()):
            self._words.append([_ALPHABET[b] for b in piece.encode("utf-8")])
            self._word_counts.append(count)
            self._count(len(self._words) - 1, 1)

    def _count(self, word: int, sign: int) -> None:
        symbols = self._words[word]
        for pair in zip(symbols, symbols[1:]):
            self._pair_counts[pair] += sign * self._word_counts[word]
            self._words_with[pair].add(word)

    def train(self, num_merges: int) -> List[Pair]:
        merges: List[Pair] = []
        while len(merges) < num_merges:
            # Ties go to the smaller pair, so the result is reproducible.
            best = min(self._pair_counts.items(),
                       key=lambda item: (-item[1], item[0]))
            pair, count = best
            if count < 2:
                raise ValueError("too little text for so many merges")
            merges.append(pair)
            for word in list(self._words_with.pop(pair)):
                self._count(word, -1)
                self._words[word] = _merge(self._words[word], pair)
                self._count(word, 1)
            self._pair_counts.pop(pair, None)
        return merges


class Tokenizer:
    def __init__(self, merges: Sequence[Pair]) -> None:
        self.merges = [tuple(pair) for pair in merges]
        self.vocab: Dict[str, int] = {}
        for symbol in _ALPHABET + [a + b for a, b in self.merges]:
            self.vocab.setdefault(symbol, len(self.vocab))
        self.bos_id = len(self.vocab)
        self.eos_id = len(self.vocab) + 1
        self.vocab_size = len(self.vocab) + 2
        self._symbol_of = {index: s for s, index in self.vocab.items()}
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._cache: Dict[str, List[int]] = {}

    def _encode_piece(self, piece: str) -> List[int]:
        if piece not in self._cache:
            symbols = [_ALPHABET[byte] for byte in piece.encode("utf-8")]
            while len(symbols) > 1:
                pair = min(zip(symbols, symbols[1:]),
                           key=lambda p: self._rank.get(p, len(self._rank)))
                if pair not in self._rank:
                    break
                symbols = _merge(symbols, pair)
            self._cache[piece] = [self.vocab[symbol] for symbol in symbols]
        return self._cache[piece]

    def encode(self, text: str, add_bos: bool = False) -> List[int]:
        ids = [self.bos_id] if add_bos else []
        for piece in split(text):
            ids += self._encode_piece(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens left out."""
        symbols = "".join(self._symbol_of.get(index, "") for index in ids)
        data = bytes(_BYTE_OF[character] for character in symbols)
        return data.decode("utf-8", errors="replace")

    def to_json(self) -> Dict[str, object]:
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [
                {"id": index, "content": content, "single_word": False,
                 "lstrip": False, "rstrip": False, "normalized": False,
                 "special": True}
                for index, content in ((self.bos_id, BOS), (self.eos_id, EOS))],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN},
                 "behavior": "Isolated", "invert": False},
                _byte_level(use_regex=False)]},
            "post_processor": {"type": "Sequence", "processors": [
                _byte_level(use_regex=True), self._bos_template()]},
            "decoder": _byte_level(use_regex=True),
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False,
                "ignore_merges": False, "vocab": self.vocab,
                "merges": [list(pair) for pair in self.merges]},
        }

    def _bos_template(self) -> Dict[str, object]:
        bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
        first = {"Sequence": {"id": "A", "type_id": 0}}
        second = {"Sequence": {"id": "B", "type_id": 1}}
        bos_of_second = {"SpecialToken": {"id": BOS, "type_id": 1}}
        return {
            "type": "TemplateProcessing", "single": [bos, first],
            "pair": [bos, first, bos_of_second, second],
            "special_tokens": {
                BOS: {"id": BOS, "ids": [self.bos_id], "tokens": [BOS]}},
        }

    def save(self, folder: pathlib.Path, max_length: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "tokenizer.json", self.to_json())
        _write_json(folder / "tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": max_length})

    @staticmethod
    def load(folder: pathlib.Path) -> "Tokenizer":
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        return Tokenizer([(a, b) for a, b in data["model"]["merges"]])


def _byte_level(use_regex: bool) -> Dict[str, object]:
    return {"type": "ByteLevel", "add_prefix_space": False,
            "trim_offsets": True, "use_regex": use_regex}


def _write_json(path: pathlib.Path, data: Dict[str, object]) -> None:
    text = json.dumps(data, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids, its two special ones last."""
    num_merges = vocab_size - len(_ALPHABET) - 2
    tokenizer = Tokenizer(BpeTrainer(texts).train(num_merges))
    if tokenizer.vocab_size != vocab_size:
        raise ValueError("two merges made the same symbol")
    return tokenizer
