"""How fast the CPU backend is: `./dev bench cpu`.

  machine    what the machine can read and multiply
  decode     steps of 1 to 32 sequences, in bf16 and in int8, against llama.cpp
  memory     how much of the machine's read rate a step of one sequence takes,
             also with AVX2 alone
  prefill    prompts of the full model, against llama.cpp
  request    512 + 256 tokens, two-stage against llama.cpp's full model
  invariant  what --batch_invariant costs
  server     16 streams through the server against the engine's own steps, and
             running streams' gaps while prompts of 512 tokens arrive
  quality    the shipped pair's right answers with int8 weights

The engine runs without a scheduler but in `server`. llama.cpp is that of the
npm package node-llama-cpp, on files of random weights that are written here.
Parts that are run one by one (--only) are joined in the one JSON file.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import secrets
import signal
import sys
import tempfile
from typing import Callable, Dict, List, Sequence, Tuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import cpu_quality  # noqa: E402
import cpu_server  # noqa: E402
from cpu_players import (  # noqa: E402
    Estimate, Models, Player, engine, estimate, in_turns, peer, playing,
    ratios)
from report import Report  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = """# CPU speed

Written by `./dev bench cpu`; see `benchmarks/cpu.py` for what each part does.
The models are random weights of the shapes 2048/8192 (full) and 1126/4505
(pruned), 16 layers, 32 heads of 64, 8 KV heads, vocabulary 128256.

`ratio` compares with llama.cpp as the npm package node-llama-cpp ships it:
above 1 ours is faster. It is the median over pairs of runs that take turns;
`_low` and `_high` hold the true median with 95 %. llama.cpp runs the pruned
shape padded to 1152/4608 and, in bf16, also exact, and the faster counts; in
Q8_0 only the padded one, which has 4 % more weights. Its decode steps are
without sampling, ours with it; its whole requests are with sampling, by the
package's own way. `request.int8` has int8 weights in our decode pool only, and
stands against llama.cpp's full model in bf16. Flash attention is on or off,
whichever is faster for its decode steps.

`read_share` is the weights' and KV's bytes without padding, by the time of a
step and the best rate that any read kernel, or llama.cpp, reached beside it.
`product_share` is against the best of our own products, `machine.product`.
`cost` is the time with `--batch_invariant` by the time without it.
"""
DECODE_CONTEXT = 128
WIDE = ["--max_batch=32", "--max_tokens=256"]
LONG = ["--max_batch=1", "--max_tokens=2304"]
READ_BYTES = 2 << 30


class Bench:
    """What the parts share."""

    def __init__(self, args: argparse.Namespace, work: pathlib.Path,
                 report: Report) -> None:
        self.report = report
        self.models = Models(work, args.tiny)
        self.pairs = args.pairs or (3 if args.quick else 10)
        self.is_quick = args.quick
        self.seed = args.seed
        self.threads = len(os.sched_getaffinity(0))
        self.binary = args.build / "benchmarks" / "overfill-bench"
        self.server = args.build / "server" / "overfill-server"
        self.has_peer = not args.without_peer
        self.read_rate = 0.0
        self.flash_attention = "auto"

    def engine(self, names: Dict[str, str], flags: Sequence[str]
               ) -> Callable[[], Player]:
        return engine(self.binary, self.models, names,
                      [f"--threads={self.threads}", *flags])

    def peer(self, files: Dict[str, pathlib.Path], batch: int, tokens: int,
             flash_attention: str = "") -> Callable[[], Player]:
        return peer(files, [
            "--threads", str(self.threads), "--max-batch", str(batch),
            "--max-tokens", str(tokens), "--flash-attention",
            flash_attention or self.flash_attention])

    def decode_files(self) -> Dict[str, pathlib.Path]:
        """llama.cpp's pruned models."""
        if not self.has_peer:
            return {}
        gguf = self.models.gguf
        return {"padded": gguf("pruned", "bf16", True),
                "exact": gguf("pruned", "bf16", False),
                "q8_0": gguf("pruned", "q8_0", True)}

    def add_ratio(self, name: str, ratio: Estimate) -> None:
        self.report.add(f"{name}", ratio.median, "ratio")
        self.report.add(f"{name}_low", ratio.low, "ratio")
        self.report.add(f"{name}_high", ratio.high, "ratio")


def measure_read_rate(bench: Bench, player: Player) -> Dict[str, float]:
    size = READ_BYTES // 32 if bench.models.is_tiny else READ_BYTES
    rates: Dict[str, float] = {}
    for _ in range(3 if bench.is_quick else 5):
        for kernel, rate in player.ask(op="read", bytes=size)["rates"].items():
            rates[kernel] = max(rate, rates.get(kernel, 0.0))
    return rates


def machine(bench: Bench) -> None:
    report = bench.report
    with playing(bench.engine({"tiny": "pruned"}, WIDE)) as (ours,):
        rates = measure_read_rate(bench, ours)
        for kernel, rate in rates.items():
            report.add(f"machine.read ({kernel})", rate / 1e9, "GB/s")
        report.add("machine.read", max(rates.values()) / 1e9, "GB/s")
        best = 0.0
        shapes = ((512, 1024, 1024), (512, 2048, 2048), (512, 2048, 8192),
                  (1024, 1024, 4096))
        for rows, inside, out in ([(64, 128, 128)] if bench.models.is_tiny
                                  else shapes):
            seconds = min(ours.seconds(op="product", rows=rows, out=out,
                                       **{"in": inside}) for _ in range(20))
            best = max(best, 2.0 * rows * inside * out / seconds)
        report.add("machine.product", best / 1e12, "TFLOP/s")


def choose_flash_attention(bench: Bench, files: Dict[str, pathlib.Path]
                           ) -> None:
    """llama.cpp's faster one, by its own steps."""
    seconds = {}
    for mode in ("on", "off"):
        with playing(bench.peer(files, 32, 256, mode)) as (theirs,):
            seconds[mode] = sum(
                theirs.seconds(op="decode", model="padded", batch=batch,
                               context=DECODE_CONTEXT, steps=4)
                for batch in (1, 8, 32))
    bench.flash_attention = min(seconds, key=lambda mode: seconds[mode])
    bench.report.add("decode.llama_cpp_flash_attention",
                     bench.flash_attention, "")


def step_seconds(player: Player, model: str, batch: int, steps: int
                 ) -> Callable[[], float]:
    return lambda: player.seconds(op="decode", model=model, batch=batch,
                                  context=DECODE_CONTEXT, steps=steps)


def compare_decode(bench: Bench, ours: Player, theirs: List[Tuple[Player, str]],
                   dtype: str, batch: int) -> List[float]:
    """Rows of one batch size against each of the peer's models; returns our
    seconds of a step."""
    report, name = bench.report, f"decode.batch{batch}.{dtype}"
    steps = 12 if batch < 8 else 6
    best: List[float] = []
    mine: List[float] = []
    for player, model in theirs:
        mine_now, seconds = in_turns(
            step_seconds(ours, dtype, batch, steps),
            step_seconds(player, model, batch, steps), bench.pairs)
        mine += mine_now
        ratio = ratios(seconds, mine_now)
        report.add(f"{name}.llama_cpp_{model}",
                   batch / estimate(seconds).median, "tokens/s")
        if not best or ratio.median < estimate(best).median:
            best = [a / b for a, b in zip(seconds, mine_now)]
    if not theirs:
        mine = [step_seconds(ours, dtype, batch, steps)()
                for _ in range(bench.pairs)]
    report.add(name, batch / estimate(mine).median, "tokens/s")
    if best:
        bench.add_ratio(f"{name}.ratio", estimate(best))
    return mine


def read_share(bench: Bench, info: Dict[str, float], dtype: str,
               seconds: float, rate: float) -> float:
    """Of the read rate, what a step of one sequence took of weights and KV."""
    weight_bytes = bench.models.decode_bytes("pruned", dtype)
    kv_bytes = (DECODE_CONTEXT + 8) * info["kv_token_bytes"]
    return (weight_bytes + kv_bytes) / seconds / rate


def memory(bench: Bench) -> None:
    """The yardstick beside what it measures; llama.cpp reads, too."""
    files = bench.decode_files()
    with contextlib.ExitStack() as stack:
        (ours,) = stack.enter_context(playing(
            bench.engine({"bf16": "pruned", "int8": "pruned,int8"}, WIDE)))
        (few,) = stack.enter_context(playing(
            bench.engine({"avx2": "pruned"}, [*WIDE, "--cpu_isa=avx2"])))
        theirs = stack.enter_context(playing(
            *([bench.peer(files, 1, 256)] if files else [])))
        info = ours.ask(op="info")
        shares: Dict[str, List[float]] = {"bf16": [], "int8": [], "avx2": []}
        for _ in range(bench.pairs):
            rate = max(measure_read_rate(bench, ours).values())
            for name, file in files.items():
                rate = max(rate, file.stat().st_size /
                           step_seconds(theirs[0], name, 1, 12)())
            for name, values in shares.items():
                player = few if name == "avx2" else ours
                values.append(read_share(
                    bench, info, "bf16" if name == "avx2" else name,
                    step_seconds(player, name, 1, 12)(), rate))
        for name, values in shares.items():
            bench.add_ratio(f"memory.batch1.{name}.read_share",
                            estimate(values))


def decode(bench: Bench) -> None:
    report, files = bench.report, bench.decode_files()
    if files:
        choose_flash_attention(bench, files)
    with contextlib.ExitStack() as stack:
        (ours,) = stack.enter_context(playing(
            bench.engine({"bf16": "pruned", "int8": "pruned,int8"}, WIDE)))
        theirs = None
        if bench.has_peer:
            (theirs,) = stack.enter_context(
                playing(bench.peer(files, 32, 256)))
            report.add("decode.llama_cpp_backend",
                       theirs.ready.get("backend"), "")
        for batch in (1, 4, 8, 16, 32):
            for dtype, names in (("bf16", ("padded", "exact")),
                                 ("int8", ("q8_0",))):
                compare_decode(
                    bench, ours,
                    [(theirs, name) for name in names] if theirs else [],
                    dtype, batch)
            bf16, int8 = in_turns(step_seconds(ours, "bf16", batch, 12),
                                  step_seconds(ours, "int8", batch, 12),
                                  bench.pairs)
            bench.add_ratio(f"decode.batch{batch}.int8_against_bf16",
                            ratios(bf16, int8))


def prefill(bench: Bench) -> None:
    report = bench.report
    with contextlib.ExitStack() as stack:
        (ours,) = stack.enter_context(
            playing(bench.engine({"full": "full"}, LONG)))
        theirs = None
        if bench.has_peer:
            file = bench.models.gguf("full", "bf16", False)
            (theirs,) = stack.enter_context(
                playing(bench.peer({"full": file}, 1, 2304)))
        for tokens in (128, 512, 2048):
            def mine() -> float:
                return ours.seconds(op="prefill", model="full", tokens=tokens)

            def others() -> float:
                assert theirs is not None
                return theirs.seconds(op="prefill", model="full",
                                      tokens=tokens)

            mine()  # not counted: the first touch of everything
            if theirs is None:
                seconds = [mine() for _ in range(bench.pairs)]
            else:
                others()
                seconds, peers = in_turns(mine, others, bench.pairs)
                report.add(f"prefill.{tokens}.llama_cpp",
                           tokens / estimate(peers).median, "tokens/s")
                bench.add_ratio(f"prefill.{tokens}.ratio",
                                ratios(peers, seconds))
            report.add(f"prefill.{tokens}", tokens / estimate(seconds).median,
                       "tokens/s")
            rate = 2.0 * tokens * bench.models.parameters("full")
            report.add(f"prefill.{tokens}.rate",
                       rate / estimate(seconds).median / 1e12, "TFLOP/s")
            product = report.rows.get("machine.product", {}).get("value")
            if product:
                report.add(f"prefill.{tokens}.product_share",
                           rate / estimate(seconds).median / 1e12 / product,
                           "share")


def request(bench: Bench) -> None:
    """Each run of llama.cpp's stands against both of ours beside it."""
    report = bench.report
    dtypes = ("bf16", "int8")
    with contextlib.ExitStack() as stack:
        (ours,) = stack.enter_context(playing(bench.engine(
            {"full": "full", "bf16": "pruned", "int8": "pruned,int8"}, LONG)))
        turns: Dict[str, Callable[[], float]] = {
            dtype: functools.partial(
                ours.seconds, op="request", model="full", decode_model=dtype,
                prompt=512, answer=256)
            for dtype in dtypes}
        if bench.has_peer:
            file = bench.models.gguf("full", "bf16", False)
            (theirs,) = stack.enter_context(
                playing(bench.peer({"full": file}, 1, 1024)))
            turns["llama_cpp"] = functools.partial(
                theirs.seconds, op="request", model="full", prompt=512,
                answer=256)
        seconds: Dict[str, List[float]] = {name: [] for name in turns}
        for pair in range(bench.pairs):
            names = list(turns)
            for name in names if pair % 2 == 0 else reversed(names):
                seconds[name].append(turns[name]())
        for name, values in seconds.items():
            report.add(f"request.{name}", estimate(values).median, "s")
        for dtype in dtypes if bench.has_peer else ():
            bench.add_ratio(f"request.{dtype}.ratio",
                            ratios(seconds["llama_cpp"], seconds[dtype]))


def invariant(bench: Bench) -> None:
    names = {"bf16": "pruned", "int8": "pruned,int8"}
    with playing(bench.engine(names, WIDE),
                 bench.engine(names, [*WIDE, "--batch_invariant"])
                 ) as (plain, fixed):
        for dtype in names:
            for batch in (1, 8, 32):
                cheap, dear = in_turns(step_seconds(plain, dtype, batch, 6),
                                       step_seconds(fixed, dtype, batch, 6),
                                       bench.pairs)
                bench.add_ratio(f"invariant.batch{batch}.{dtype}.cost",
                                ratios(dear, cheap))
    with playing(bench.engine({"full": "full"}, LONG),
                 bench.engine({"full": "full"}, [*LONG, "--batch_invariant"])
                 ) as (plain, fixed):
        def timed(player: Player) -> Callable[[], float]:
            return lambda: player.seconds(op="prefill", model="full",
                                          tokens=512)

        cheap, dear = in_turns(timed(plain), timed(fixed), bench.pairs)
        bench.add_ratio("invariant.prefill512.cost", ratios(dear, cheap))


def server(bench: Bench) -> None:
    cpu_server.throughput(bench.server, bench.engine({"bf16": "pruned"}, WIDE),
                          bench.models, bench.pairs, bench.seed, bench.report)
    cpu_server.gaps(bench.server, bench.models, bench.is_quick, bench.seed,
                    bench.report)


def quality(bench: Bench) -> None:
    cpu_quality.quality(bench.server, 20 if bench.is_quick else 200,
                        bench.report)


PARTS: Dict[str, Callable[[Bench], None]] = {
    "machine": machine, "decode": decode, "memory": memory,
    "prefill": prefill, "request": request, "invariant": invariant,
    "server": server, "quality": quality}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev bench cpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "docs" /
                        "benchmarks" / "cpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true",
                        help="few pairs: does it work, not what is it")
    parser.add_argument("--tiny", action="store_true",
                        help="tiny models: for the benchmark's own test")
    parser.add_argument("--without_peer", action="store_true")
    parser.add_argument("--pairs", type=int, help="of runs; 10")
    parser.add_argument("--models", type=pathlib.Path,
                        help="where llama.cpp's files are kept; 8 GB")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--build", type=pathlib.Path,
                        default=ROOT / "build" / "release")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report("cpu", HEAD, args.json)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, args.models or pathlib.Path(scratch), report)
        is_whole = report.run({
            part: functools.partial(measure, bench)
            for part, measure in PARTS.items() if part in args.only})
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
