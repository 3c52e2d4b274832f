"""Types for argparse that check a number's range, so that a wrong number ends in one line before any work begins."""

import argparse
import math
import re
from collections.abc import Callable

MANY = 1_000_000_000
"""The highest count that is taken where nothing else bounds it."""


def whole(low: int, high: int = MANY, multiple_of: int = 1) -> Callable[[str], int]:
    """The type of a whole number from `low` to `high`, which divides by `multiple_of`."""
    kind = "whole number" if multiple_of == 1 else f"multiple of {multiple_of}"

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch("[+-]?[0-9]{1,20}", text) else None  # int() takes 1_0, too, and other digits
        if value is None or not low <= value <= high or value % multiple_of:
            raise argparse.ArgumentTypeError(f"must be a {kind} from {low} to {high}, not {text[:40]!r}")
        return value

    return parse


def real(low: float, high: float, *, above: bool = False, below: bool = False) -> Callable[[str], float]:
    """The type of a finite number from `low` to `high`; with `above` (`below`), the bound itself is left out."""

    def parse(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not low <= value <= high or (above and value == low) or (below and value == high):
            lowest = f"above {low:g}" if above else f"from {low:g}"
            highest = f"below {high:g}" if below else f"to {high:g}"
            raise argparse.ArgumentTypeError(f"must be a number {lowest} {highest}, not {text[:40]!r}")
        return value

    return parse
