"""What stands beside measured figures: the machine and the commit."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import subprocess
from typing import Any, Dict

ROOT = pathlib.Path(__file__).resolve().parents[2]


def machine() -> Dict[str, Any]:
    model = platform.processor()
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform()}


def commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
        capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
