"""Checks what one folder may know of another.

    python3 -m tests.lint.layers [ROOT]

server -> scheduler -> engine -> kernels -> base, never back. CUDA headers stay
in kernels/cuda, generated protos in server/, client/ and benchmarks/, and no
file above kernels/ asks the preprocessor which backend it has.
"""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Iterator, List

# A folder may include itself and those before it.
LAYERS = ("base", "kernels", "engine", "scheduler", "server")
# Programs beside the server: they speak to it, or measure what they name.
MAY_INCLUDE = {
    "client": {"base", "client"},
    "benchmarks": {"base", "client", "kernels", "engine", "benchmarks"},
}
PROTO_FOLDERS = ("proto", "server", "client", "benchmarks")
MAX_LINES = 500

_INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
_CONDITION = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b(.*)")
_BACKEND = re.compile(r"CUDA|__NVCC__|HWY_|DNNL", re.IGNORECASE)
_CUDA_HEADER = re.compile(r"^(cuda|cublas|cub/|cooperative_groups|nv[A-Za-z])")
_PROTO_HEADER = re.compile(r"\.(grpc\.)?pb\.h$")


def allowed(folder: str) -> set:
    if folder in LAYERS:
        return set(LAYERS[:LAYERS.index(folder) + 1])
    return MAY_INCLUDE.get(folder, set())


def check_line(path: pathlib.PurePosixPath, line: str) -> Iterator[str]:
    folder = path.parts[0]
    condition = _CONDITION.match(line)
    if (condition and folder in LAYERS and folder not in ("base", "kernels")
            and _BACKEND.search(condition.group(2))):
        yield "asks the preprocessor for a backend"
    include = _INCLUDE.match(line)
    if not include:
        return
    quoted, target = include.group(1) == '"', include.group(2)
    first = target.split("/")[0]
    if _CUDA_HEADER.match(target) and path.parts[:2] != ("kernels", "cuda"):
        yield f"includes {target}, a CUDA header, outside kernels/cuda"
    if folder == "tests":
        return
    if _PROTO_HEADER.search(target):
        if folder not in PROTO_FOLDERS:
            yield f"includes {target}, generated code, outside server/"
    elif quoted and first in LAYERS + tuple(MAY_INCLUDE) + ("tests",):
        if first not in allowed(folder):
            yield f"includes {target}: {folder}/ may not know {first}/"


def check_file(root: pathlib.Path, path: pathlib.PurePosixPath) -> List[str]:
    lines = (root / path).read_text(encoding="utf-8").splitlines()
    found = [f"{path}:{number}: {what}"
             for number, line in enumerate(lines, 1)
             for what in check_line(path, line)]
    if len(lines) > MAX_LINES and path.parts[0] != "tests":
        found.append(f"{path}: {len(lines)} lines, more than {MAX_LINES}")
    return found


def check_tree(root: pathlib.Path) -> List[str]:
    found: List[str] = []
    folders = LAYERS + tuple(MAY_INCLUDE) + ("tests",)
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if "node_modules" in path.parts:
                continue  # not ours
            if path.suffix in (".h", ".cc", ".cu", ".cuh"):
                found += check_file(
                    root, pathlib.PurePosixPath(path.relative_to(root)))
    return found


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    found = check_tree(root)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
