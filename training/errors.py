"""What the user got wrong, told in one line."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any, Callable, NoReturn, Optional


class UserError(Exception):
    """A bad file, flag or datum. The text names it; no traceback is shown."""


class Parser(argparse.ArgumentParser):
    """Tells a bad flag in one line, as all else is told."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main_of(function: Callable[[], Optional[int]]) -> NoReturn:
    """Runs a program: its own exit code, or one line on stderr and 2."""
    signal.signal(signal.SIGTERM, _end)
    try:
        code = function()
    except UserError as error:
        _fail(str(error), 2)
    except OSError as error:  # disk full, no permission, ...
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except MemoryError:
        _fail("out of memory", 2)
    except RuntimeError as error:  # as torch says it
        if "memory" not in str(error):
            raise
        _fail(f"out of memory: {str(error).splitlines()[0]}", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    sys.exit(code or 0)


def _end(number: int, _frame: Any) -> NoReturn:
    """As an exception does it: what is half-written goes away."""
    sys.exit(128 + number)


def _fail(text: str, code: int) -> NoReturn:
    """A file's name may hold line ends; the message stays one line."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:2000])
    print(f"error: {line.encode('utf-8', 'replace').decode('utf-8')}",
          file=sys.stderr)
    sys.exit(code)
