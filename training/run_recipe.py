"""Makes a pair as a recipe says: prunes, then distils.

    python3 -m training.run_recipe RECIPE.toml --model DIR --calibration FILE \\
        --data FILE --out DIR [--processes N] [--set SECTION.KEY=VALUE ...]

A recipe is a file of TOML. [prune] and [distil] hold flags of those programs,
[model] the shape that --model must have and [pruned] the widths that pruning
must come to. OUT gets `pruned` and `decode`; the same command goes on where an
earlier one ended. The pair is DIR and OUT/decode.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import signal
import subprocess
import sys
import tomllib
from typing import Any, Dict, List, Optional

from training import checkpoint, prune_choice
from training.errors import Parser, UserError, main_of
from training.model_config import ModelConfig

_MAX_RECIPE_BYTES = 1 << 20
_SECTIONS = ("model", "pruned", "prune", "distil")
# What the recipe's runner says itself.
_OWN_FLAGS = {"prune": ("model", "calibration", "out"),
              "distil": ("full", "decode", "data", "out", "parallel")}
_KEY = re.compile(r"[a-z][a-z_]*")
STATE_FILE = "recipe.json"

Section = Dict[str, Any]
Recipe = Dict[str, Section]


def load_recipe(path: pathlib.Path, changes: List[str]) -> Recipe:
    """`changes`: SECTION.KEY=VALUE, the value as TOML has it, else text."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_RECIPE_BYTES + 1)
        if len(data) > _MAX_RECIPE_BYTES:
            raise UserError(f"{path}: is larger than {_MAX_RECIPE_BYTES} "
                            "bytes")
        recipe = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # of TOML or of UTF-8
        raise UserError(f"{path}: not valid TOML: {error}") from None
    for name, section in recipe.items():
        if name not in _SECTIONS or not isinstance(section, dict):
            raise UserError(f"{path}: {name[:100]!r} is none of the sections "
                            f"{', '.join(_SECTIONS)}")
    for name in ("prune", "distil"):
        if name not in recipe:
            raise UserError(f"{path}: has no section {name}")
    recipe = {name: recipe.get(name, {}) for name in _SECTIONS}
    for change in changes:
        _apply(recipe, change)
    for name, section in recipe.items():
        for key, value in section.items():
            _check_entry(path, name, key, value)
    return recipe


def _apply(recipe: Recipe, change: str) -> None:
    match = re.fullmatch(r"([a-z]+)\.([a-z_]+)=(.*)", change, re.DOTALL)
    if match is None or match[1] not in recipe:
        raise UserError(f"--set {change[:200]}: must be SECTION.KEY=VALUE, of "
                        f"{', '.join(_SECTIONS)}")
    try:
        value = tomllib.loads(f"value = {match[3]}")["value"]
    except (ValueError, RecursionError):
        value = match[3]
    recipe[match[1]][match[2]] = value


def _check_entry(path: pathlib.Path, name: str, key: str, value: Any) -> None:
    where = f"{path}: {name}.{key[:100]}"
    if not _KEY.fullmatch(key):
        raise UserError(f"{where}: is no key")
    if key in _OWN_FLAGS.get(name, ()):
        raise UserError(f"{where}: is not for a recipe to say")
    if not isinstance(value, (bool, int, float, str)):
        raise UserError(f"{where}: must be a number, a text, true or false")
    if name == "pruned" and key not in ("hidden_size", "intermediate_size"):
        raise UserError(f"{where}: is no width")


def flags_of(section: Section) -> List[str]:
    """false leaves its flag out."""
    flags: List[str] = []
    for key, value in section.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not False:
            # One word, as a value may begin with a dash.
            flags.append(f"{flag}={value}")
    return flags


def check_model(recipe: Recipe, folder: pathlib.Path) -> ModelConfig:
    config, _ = checkpoint.read_config(folder)
    for key, value in recipe["model"].items():
        found = getattr(config, key, None)
        if found != value:
            raise UserError(f"{folder / 'config.json'}: {key} is {found}, the "
                            f"recipe is for {value}")
    return config


def check_widths(recipe: Recipe, config: ModelConfig) -> None:
    """Of `config` pruned, before hours are spent on it."""
    for key, flag in (("hidden_size", "hidden"),
                      ("intermediate_size", "intermediate")):
        if flag not in recipe["prune"]:
            raise UserError(f"the recipe has no prune.{flag}")
        width = prune_choice.parse_width(str(recipe["prune"][flag]),
                                         f"prune.{flag}")
        kept = prune_choice.count_kept(width, getattr(config, key),
                                       f"prune.{flag}")
        want = recipe["pruned"].get(key, kept)
        if kept != want:
            raise UserError(f"prune.{flag} {recipe['prune'][flag]} of "
                            f"{key} {getattr(config, key)} keeps {kept}, the "
                            f"recipe says {want}")


def run_stage(command: List[str]) -> None:
    """In a process of its own, which says itself what is wrong, and which a
    SIGTERM goes on to: it may have something to save. A terminal's SIGINT
    reaches it by itself."""
    print(" ".join(command), flush=True)
    child: Optional[subprocess.Popen] = None
    ended: List[int] = []

    def note(number: int, _: Any) -> None:
        ended.append(number)
        if child is not None and number == signal.SIGTERM:
            child.send_signal(number)

    before = {number: signal.signal(number, note)
              for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = subprocess.Popen(command)
        if signal.SIGTERM in ended:
            child.send_signal(signal.SIGTERM)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended:
        sys.exit(128 + ended[0])
    if code != 0:
        sys.exit(code if code > 0 else 128 - code)


def distil_command(processes: int) -> List[str]:
    if processes == 1:
        return [sys.executable, "-m", "training.distil"]
    # -r and -t: see distributed.py.
    return [sys.executable, "-m", "torch.distributed.run", "--standalone",
            "-r", "1", "-t", "1", f"--nproc_per_node={processes}",
            "-m", "training.distil"]


def begin(out: pathlib.Path, state: Dict[str, Section]) -> None:
    """What was made by other settings is not gone on with. `state` has a
    section per stage; one that has made nothing yet may change."""
    path = out / STATE_FILE
    if not path.exists():
        checkpoint.check_new(out)
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path, state)
        return
    stored = checkpoint.read_json(path)
    begun = {"prune": (out / "pruned").exists(),
             "distil": (out / "decode").exists()
             or (out / "decode.run").exists()}
    for stage, now in state.items():
        then = stored.get(stage) if isinstance(stored, dict) else None
        if not isinstance(then, dict):
            raise UserError(f"{path}: has no section {stage}")
        for key in sorted({*then, *now}) if begun[stage] else ():
            if then.get(key) != now.get(key):
                raise UserError(
                    f"{path}: {stage} began with {key} {then.get(key)}, now "
                    f"it is {now.get(key)}: take another --out")
    checkpoint.write_json(path, state)


def run(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, args.set)
    if args.any_model:
        recipe["model"], recipe["pruned"] = {}, {}
    check_widths(recipe, check_model(recipe, args.model))
    for flag in ("calibration", "data"):
        if not getattr(args, flag).is_file():
            raise UserError(f"{getattr(args, flag)}: no such file")
    # How many processes share the work is free to change.
    begin(args.out, {
        "prune": {"--model": str(args.model.resolve()),
                  "--calibration": str(args.calibration.resolve()),
                  **recipe["prune"]},
        "distil": {"--data": str(args.data.resolve()), **recipe["distil"]}})
    # Both programs make their folder when all else is done.
    pruned, decode = args.out / "pruned", args.out / "decode"
    if not pruned.is_dir():
        try:
            run_stage([
                sys.executable, "-m", "training.prune",
                "--model", str(args.model),
                "--calibration", str(args.calibration), "--out", str(pruned),
                *flags_of(recipe["prune"])])
        finally:
            # Nothing was made, and nothing is left over.
            if [path.name for path in args.out.iterdir()] == [STATE_FILE]:
                (args.out / STATE_FILE).unlink()
                args.out.rmdir()
    if not decode.is_dir():
        parallel = [] if args.processes == 1 else ["--parallel", args.parallel]
        run_stage([
            *distil_command(args.processes), "--full", str(args.model),
            "--decode", str(pruned), "--data", str(args.data),
            "--out", str(decode), *parallel, *flags_of(recipe["distil"])])
    print(f"the pair: --prefill_model={args.model} --decode_model={decode}")


def _parse_args(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = Parser(prog="training.run_recipe", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add, path = parser.add_argument, pathlib.Path
    add("recipe", type=path, metavar="RECIPE.toml")
    add("--model", type=path, required=True, metavar="DIR",
        help="the full model")
    add("--calibration", type=path, required=True, metavar="FILE")
    add("--data", type=path, required=True, metavar="FILE")
    add("--out", type=path, required=True, metavar="DIR")
    add("--processes", type=int, default=1,
        help="of distilling, on this machine, by torchrun")
    add("--parallel", choices=("ddp", "fsdp"), default="fsdp",
        help="how several processes share the work")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="instead of what the recipe says, such as distil.lr=1e-5")
    add("--any-model", action="store_true",
        help="take a model of another shape, and the widths it comes to")
    args = parser.parse_args(argv)
    if not 1 <= args.processes <= 1024:
        raise UserError("--processes must be from 1 to 1024")
    return args


def main(argv: Optional[List[str]] = None) -> None:
    run(_parse_args(argv))


if __name__ == "__main__":
    main_of(main)
