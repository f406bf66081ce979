"""What a Hugging Face Space asks of the app; the variables that a Space sets say that this is one."""

from __future__ import annotations

import os

from core.errors import ChatError

EVERY_ADDRESS = "0.0.0.0"  # a Space's own proxy comes from another machine
NOTE = "The model runs on the processor; the GPU of this Space is not used."
# Beside the button to sign in with (https://huggingface.co/docs/hub/spaces-storage).
KEEPS = (
    "Without signing in, chats are kept in your browser only. Once you are signed in, they are kept on this "
    "Space's disk, which is empty after a restart unless its owner has attached storage to it."
)


def is_one() -> bool:
    """Whether this runs on a Hugging Face Space."""
    return bool(os.environ.get("SPACE_ID"))


def default_address() -> str | None:
    """The address to serve on if the user says none; None is Gradio's own default, this machine only."""
    return EVERY_ADDRESS if is_one() else None


def zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space, by the rule of `spaces/config.py` (spaces 0.51)."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def note() -> str:
    """What the page says about the machine; empty where there is nothing to say."""
    return NOTE if zero_gpu() else ""


def register_gpu_function() -> None:
    """Have a function decorated with `spaces.GPU` on a ZeroGPU Space: an app without one is ended.

    It is never called: llama.cpp runs on the processor. Elsewhere `spaces` isn't needed. Raises ChatError.
    """
    if not zero_gpu():
        return
    try:
        import spaces
    except ModuleNotFoundError:
        raise ChatError(
            "SPACES_ZERO_GPU is set, as on a ZeroGPU Space, but the package 'spaces' isn't installed: "
            "pip install spaces, or unset SPACES_ZERO_GPU"
        ) from None

    def gpu() -> None:
        """Stands for the work that a GPU would do."""

    spaces.GPU(gpu)
