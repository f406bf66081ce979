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


class QueueFull(ChatError):
    """As many wait as may wait; later there is room again."""


class NoSuchModel(ChatError):
    """The menu has no model of this name, or its file isn't on this disk."""


class TooLong(ChatError):
    """The message, or what it stands in, doesn't fit the model's context."""


class NoSuchToken(ChatError):
    """A prompt of token ids has one that the model's vocabulary doesn't."""


class NoSuchAdapter(ChatError):
    """The model has no adapter of this name, or not of this strength."""


class Stopped(ChatError):
    """The user stopped a turn before it began."""


class ConvertError(ChatError):
    """A sentence for the user; the command prints it without a traceback and exits with 1."""


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


class TrainingBroke(TrainError):
    """A loss or a gradient that is no number: no step after it means anything."""
