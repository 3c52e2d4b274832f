"""Types for argparse that check a number's range, so that a wrong number ends in one line before any work begins."""

import argparse
import math
from collections.abc import Callable

MANY = 1_000_000_000
"""The highest count that is taken where nothing else bounds it."""


def whole(low: int, high: int = MANY) -> Callable[[str], int]:
    """The type of a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text[:40]!r}")
        return value

    return parse


def real(low: float, high: float, *, above: bool = False, below: bool = False) -> Callable[[str], float]:
    """The type of a finite number from `low` to `high`; with `above` (`below`), the bound itself is left out."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (above and value == low) or (below and value == high):
            lowest = f"above {low:g}" if above else f"from {low:g}"
            highest = f"below {high:g}" if below else f"to {high:g}"
            raise argparse.ArgumentTypeError(f"must be a number {lowest} {highest}, not {text[:40]!r}")
        return value

    return parse
