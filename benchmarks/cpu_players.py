"""The players of the CPU benchmark, and how two of them are compared.

A player is a process that answers a command, a line of JSON, with a line of
JSON. Two play in turns, so that what the machine does to one it does to the
other.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import statistics
import subprocess
import sys
from typing import (Any, Callable, Dict, Iterator, List, Sequence, Tuple)

PEER = pathlib.Path(__file__).resolve().parent / "peer"
START_SECONDS = 600

sys.path.insert(0, str(PEER))

import gguf  # noqa: E402

# By the names of both players: full, pruned.
SHAPES = {"full": (2048, 8192), "pruned": (1126, 4505)}
# llama.cpp's blocks are of 32; the nearest shape that it takes in every type.
PADDED = (1152, 4608)
COMMON = {"layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64,
          "vocab": 128256, "context": 8192}
TINY_SHAPES = {"full": (128, 512), "pruned": (70, 281)}
TINY_PADDED = (96, 288)
TINY_COMMON = {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16,
               "vocab": 1000, "context": 8192}


class Player:
    """Ready when the constructor returns."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True)
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def _answer(self) -> Dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with "
                               f"{self._process.wait(START_SECONDS)}")
        answer: Dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, **command: Any) -> Dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def seconds(self, **command: Any) -> float:
        """Of the command; of its steps the median."""
        seconds = self.ask(**command)["seconds"]
        if isinstance(seconds, list):
            return statistics.median(seconds)
        return float(seconds)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def playing(*players: Callable[[], Player]) -> Iterator[List[Player]]:
    with contextlib.ExitStack() as stack:
        started = []
        for start in players:
            started.append(start())
            stack.callback(started[-1].close)
        yield started


@dataclasses.dataclass(frozen=True)
class Models:
    """The directories and files of both players' models, and their shapes."""
    work: pathlib.Path
    is_tiny: bool = False

    @property
    def common(self) -> Dict[str, int]:
        return TINY_COMMON if self.is_tiny else COMMON

    @property
    def shapes(self) -> Dict[str, Tuple[int, int]]:
        return TINY_SHAPES if self.is_tiny else SHAPES

    def parameters(self, name: str) -> int:
        """Of the layers' products: those that every token of a prompt needs."""
        hidden, inner = self.shapes[name]
        common = self.common
        heads = (2 * common["heads"] + 2 * common["kv_heads"])
        attention = heads * common["head_dim"] * hidden
        return common["layers"] * (attention + 3 * hidden * inner)

    def decode_bytes(self, name: str, dtype: str) -> float:
        """Of the weights that a step reads, the head's included."""
        hidden, _ = self.shapes[name]
        weights = self.parameters(name) + self.common["vocab"] * hidden
        # int8 has a scale of 16 bits for each 64.
        return weights * (2 if dtype == "bf16" else 1 + 2 / 64)

    def config(self, name: str) -> pathlib.Path:
        """A directory with the config.json of one of our models."""
        hidden, inner = self.shapes[name]
        common = self.common
        directory = self.work / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_act": "silu", "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": common["layers"],
            "num_attention_heads": common["heads"],
            "num_key_value_heads": common["kv_heads"],
            "head_dim": common["head_dim"], "vocab_size": common["vocab"],
            "max_position_embeddings": common["context"],
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "tie_word_embeddings": True, "torch_dtype": "bfloat16"}),
            encoding="utf-8")
        return directory

    def gguf(self, name: str, dtype: str, padded: bool) -> pathlib.Path:
        """A file of one of llama.cpp's models, written where it is not."""
        hidden, inner = self.shapes[name]
        if padded:
            hidden, inner = TINY_PADDED if self.is_tiny else PADDED
        path = self.work / f"{hidden}-{inner}-{dtype}.gguf"
        if not path.exists():
            shape = gguf.Shape(hidden=hidden, intermediate=inner,
                               **self.common)
            gguf.write_model(path, shape, dtype, seed=1)
        return path


def engine(binary: pathlib.Path, models: Models, names: Dict[str, str],
           flags: Sequence[str]) -> Callable[[], Player]:
    """Ours; names: of the models in the commands, each SHAPE or SHAPE,TYPE."""
    argv = [str(binary), "engine", *flags]
    for name, what in names.items():
        shape, _, dtype = what.partition(",")
        argv.append(f"--model={name}={models.config(shape)}" +
                    (f",{dtype}" if dtype else ""))
    return lambda: Player("overfill-bench engine", argv)


def peer(files: Dict[str, pathlib.Path], flags: Sequence[str]
         ) -> Callable[[], Player]:
    argv = ["node", str(PEER / "llama_cpp.mjs"), *flags]
    for name, file in files.items():
        argv += ["--model", f"{name}={file}"]
    return lambda: Player("llama.cpp", argv)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A median, and an interval that holds the true one in 95 of 100 runs."""
    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """By the ranks that a binomial of one half gives; no distribution of the
    values is assumed. With fewer than six values it is all of them."""
    ordered = sorted(values)
    count = len(ordered)
    rank, outside = 0, 0.5 ** count
    while outside + math.comb(count, rank + 1) * 0.5 ** count <= 0.025:
        rank += 1
        outside += math.comb(count, rank) * 0.5 ** count
    return Estimate(statistics.median(ordered), ordered[rank],
                    ordered[count - 1 - rank])


Timed = Callable[[], float]


def in_turns(first: Timed, second: Timed, pairs: int
             ) -> Tuple[List[float], List[float]]:
    """Each called `pairs` times, who begins changing from pair to pair."""
    results: Tuple[List[float], List[float]] = ([], [])
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        for which in order:
            results[which].append((first, second)[which]())
    return results


def ratios(numerator: Sequence[float], denominator: Sequence[float]
           ) -> Estimate:
    return estimate([a / b for a, b in zip(numerator, denominator)])
