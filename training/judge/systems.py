"""The systems that are compared, and the folders they are served from.

    models/demo/full                 the full model
    models/demo/decode               the pair's decoder
    models/demo/judged/pruned        the same cut, trained to read by itself
    models/demo/judged/scratch       the same widths from random weights
    models/demo/judged/ratios/R/...  decode and pruned at other ratios
"""

from __future__ import annotations

import json
import pathlib
from typing import Dict, List, NamedTuple

NAMES = ("full", "two_stage", "pruned", "scratch")
# How a system's answers are asked for; pruned and scratch read by themselves.
PATH_OF = {"full": "full", "two_stage": "two_stage", "pruned": "pruned",
           "scratch": "pruned"}


class System(NamedTuple):
    name: str
    path: str               # full, two_stage or pruned
    decode: pathlib.Path    # the decode pool's checkpoint

    def weights_folder(self, full: pathlib.Path) -> pathlib.Path:
        """The checkpoint whose weights each decoded token reads."""
        return full if self.path == "full" else self.decode


def of_pair(pair: pathlib.Path) -> List[System]:
    folders = {"full": pair / "decode", "two_stage": pair / "decode",
               "pruned": pair / "judged" / "pruned",
               "scratch": pair / "judged" / "scratch"}
    return [System(name, PATH_OF[name], folders[name]) for name in NAMES]


def of_ratio(folder: pathlib.Path) -> List[System]:
    return [System("two_stage", "two_stage", folder / "decode"),
            System("pruned", "pruned", folder / "pruned")]


def ratios(pair: pathlib.Path) -> Dict[float, pathlib.Path]:
    """Share of the hidden channels kept -> folder; the pair's own beside."""
    found = {kept_share(pair, pair / "decode"): pair}
    for folder in sorted((pair / "judged" / "ratios").glob("*")):
        if (folder / "decode" / "config.json").exists():
            found[kept_share(pair, folder / "decode")] = folder
    return dict(sorted(found.items()))


def kept_share(pair: pathlib.Path, decode: pathlib.Path) -> float:
    return _hidden_size(decode) / _hidden_size(pair / "full")


def _hidden_size(folder: pathlib.Path) -> int:
    text = (folder / "config.json").read_text(encoding="utf-8")
    return int(json.loads(text)["hidden_size"])


def weight_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
