"""What the commands' arguments have in common: their types, and the refusal of those that a run has no use for."""

import argparse
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch

from ..crop import CHOICES
from ..devices import DTYPES
from ..errors import InputError
from ..geometry import SIDE
from ..numbers import real, whole
from ..settings import LARGEST_RESOLUTION

DEVICE = "cpu, cuda, cuda:1, mps (default: the best there is)"
steps = whole(1, 1000)

STAGES = ("resolution", "shape", "steps", "seed", "sampler", "decoder", "ending", "radius", "detail", "keep_background")
"""The options of stage 1 and of what follows it."""


def file_or_folder(text: str) -> Path:
    """A type for argparse. An empty text, such as an unset variable gives, is not taken for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a file or a folder is empty")
    return Path(text)


def dtype(text: str) -> torch.dtype:
    if text.lower() not in DTYPES:
        raise argparse.ArgumentTypeError(f"unknown dtype {text!r}; use float32, bfloat16 or float16")
    return DTYPES[text.lower()]


def resolution(text: str) -> int:
    number = whole(0, LARGEST_RESOLUTION)(text)
    if 0 < number < SIDE:
        raise argparse.ArgumentTypeError(f"must be at least {SIDE} (or 0, the checkpoint's own), not {number}")
    return number


def output_size(text: str) -> Callable[[int, int], tuple[int, int]]:
    """What `--output-size` says, as a function of the composite's height and width that gives those of the result."""
    found = re.fullmatch(r"([0-9]{1,6})(?:[xX]([0-9]{1,6}))?", text)
    if not found or not all(0 < int(side) <= 65500 for side in found.groups() if side is not None):
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no size; give the longer side in pixels (1024) or WIDTHxHEIGHT (1024x768)"
        )
    first, second = found.groups()
    if second is not None:
        return lambda height, width: (int(second), int(first))

    def proportional(height: int, width: int) -> tuple[int, int]:
        longer = max(height, width)
        return max(1, round(height * int(first) / longer)), max(1, round(width * int(first) / longer))

    return proportional


def refuse(given: Collection[str], names: Iterable[str], why: str) -> None:
    """InputError, which says why, where one of these options was given. The run has no use for them."""
    unused = [f"--{name.replace('_', '-')}" for name in names if name in given]
    if unused:
        raise InputError(f"{' and '.join(unused)}: {why}")


def crop(text: str) -> float | str:
    """A type for `--crop`: off, auto or a number from 1 to 8."""
    if text in CHOICES:
        return text
    try:
        return real(1, 8)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or give {' or '.join(CHOICES)}") from None
