"""The base that something is measured of: the options that say which and where, and the model they mean."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import torch

from core.errors import TrainError
from train.base import model_at
from train.recipe import full_path, load_recipe
from train.sections import Model

TOUR = "smollm2-quotes"  # the recipe whose base it is if none is given


def add_base(parser: ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--base", type=full_path, help="a 16-bit checkpoint, or a GGUF that becomes one (the tour's)")
    add("--license", default="licence not given", help="of --base")
    add("--device", choices=("cpu", "cuda"), default="cpu")


def base_of(parser: ArgumentParser, given: Namespace) -> Model:
    """What was asked for; a wrong option ends the program as the parser does."""
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA GPU here; leave --device out")
    try:
        return model_at(given.base, given.license) if given.base else load_recipe(TOUR).model
    except TrainError as error:
        parser.error(f"--base {error}")
