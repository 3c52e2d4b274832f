"""What a value of a config may be, and how it is shown. Plain Python."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEVELS = 8
MISSING = object()  # a default: without the key the config says nothing of it
NEEDED = object()  # a default: there is none


class Wrong(Exception):
    """A value that is none of the allowed."""


@dataclass(frozen=True)
class Whole:
    low: int
    high: int

    def __call__(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise Wrong
        return value

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Number:
    low: float
    high: float

    def __call__(self, value: Any) -> float:
        if type(value) not in (int, float) or not self.low <= value <= self.high:  # false for NaN too
            raise Wrong
        return value

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


class OneOf:
    def __init__(self, *values: Any) -> None:
        self.values = values

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (str, int, float, type(None))) and value in self.values:
            return self.values[self.values.index(value)]
        raise Wrong

    def __str__(self) -> str:
        return " or ".join(map(repr, self.values))


@dataclass(frozen=True)
class Each:
    """One value a level."""

    rule: Callable[[Any], Any]

    def __call__(self, value: Any) -> list:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= LEVELS:
            raise Wrong
        return [self.rule(one) for one in value]

    def __str__(self) -> str:
        return f"a list, for 1 to {LEVELS} levels, of {self.rule}"


class Either:
    def __init__(self, *rules: Callable[[Any], Any]) -> None:
        self.rules = rules

    def __call__(self, value: Any) -> Any:
        for rule in self.rules:
            try:
                return rule(value)
            except Wrong:
                pass
        raise Wrong

    def __str__(self) -> str:
        return ", or ".join(map(str, self.rules))


def ignored(value: Any) -> Any:
    """For what has no say in a network of ours: whatever the file says, the default stands."""
    return value


def each(value: Any, levels: int) -> list:
    """One value a level, of a setting that may be one for all."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


def shown(value: Any) -> str:
    """A value that came from a file, for a message: printable and not longer than a line."""
    try:
        text = repr(value)[1:-1] if isinstance(value, str) else repr(value)
    except RecursionError:
        text = "lists within lists"
    return text if len(text) <= 80 else f"{text[:60]}…"


def few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
