"""Errors whose text is shown to the user as it stands: what is wrong, where, and what cures it."""

from core.errors import ChatError


class TrainError(ChatError):
    """A sentence for the user; the command prints it without a traceback and exits with 1."""


class DiskError(TrainError):
    """A file couldn't be written: once that is cured, the run goes on."""


class LeftOut(Exception):
    """Why a row is no example, what was seen of it, and whether its author wants that."""

    def __init__(self, reason: str, seen: object = "", on_purpose: bool = False) -> None:
        super().__init__(reason)
        self.seen = seen if isinstance(seen, str) and not seen else repr(seen)
        self.on_purpose = on_purpose
