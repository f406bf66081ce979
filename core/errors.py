"""Errors whose text is shown to the user as it stands: what is wrong, where, and what to do."""


class ChatError(Exception):
    """A sentence for the user. The screen shows it; the command line prints it without a traceback."""

    def __init__(self, sentence: str = "") -> None:
        # A file name that isn't UTF-8 holds lone surrogates, which neither a page nor a terminal takes.
        super().__init__(sentence.encode("utf-8", "backslashreplace").decode())


class ModelFileError(ChatError):
    """A GGUF file is missing, cut short, not a GGUF, or needs more than this machine has."""


class TemplateError(ChatError):
    """A chat template failed, looped, or asked for more than it may have."""


class EngineDied(ChatError):
    """The engine stopped in the middle of a reply; the turn can be retried after a restart."""
