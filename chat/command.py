"""What all our commands have in common: one line for a mistake, no traceback, and an exit code that tells."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from chat.errors import ChatError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, exits with 2. `prog` is the command as it is typed."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def run(work: Callable[[], int], stopped: str) -> int:
    """Do `work`; return its exit code, 1 after a user's mistake or a full disk, 130 after Ctrl-C.

    `stopped` says what Ctrl-C leaves behind.
    """
    try:
        return work()
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that can't be written
        print(f"error: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 130
