"""Errors whose text is shown to the user as it stands: what is wrong, where, and what cures it."""

from core.errors import ChatError


class ConvertError(ChatError):
    """A sentence for the user; the command prints it without a traceback and exits with 1."""
