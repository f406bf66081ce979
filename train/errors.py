"""Errors whose text is shown to the user as it stands: what is wrong, where, and what cures it."""

from core.errors import ChatError


class TrainError(ChatError):
    """A sentence for the user; the command prints it without a traceback and exits with 1."""


class DiskError(TrainError):
    """A file couldn't be written: once that is cured, the run goes on."""
