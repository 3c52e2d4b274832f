"""Recipes: a trainer's settings as a table of a TOML file.

A trainer's settings are one frozen dataclass, `Settings` or a subclass of it. Its fields are the schema: each says what
it may be. A recipe has a table for each part (`[harmonizer]`); what a table leaves out has the field's default.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from ..numbers import real, whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
PARTS = ("color_regressor", "autoencoder", "harmony_vae", "harmonizer", "refiner")
"""The tables of a recipe."""

S = TypeVar("S", bound="Settings")


def number(default: float | None, parse: Callable[[str], Any], help: str) -> Any:
    """A field for one number; `parse` is a type of `numbers`."""
    return dataclasses.field(default=default, metadata={"read": _number(parse), "help": help})


def several(default: tuple[int, ...], parse: Callable[[str], int], help: str, *, count: int | None = None) -> Any:
    """A field for a list of numbers, of so many where `count` says so."""

    def read(value: object) -> tuple[int, ...]:
        if not isinstance(value, list) or not value or (count and len(value) != count):
            raise argparse.ArgumentTypeError(f"must be a list of {count or 'some'} numbers, not {str(value)[:40]}")
        return tuple(_number(parse)(each) for each in value)

    return dataclasses.field(default=default, metadata={"read": read, "help": help})


def choice(default: str | int | None, choices: tuple[str | int, ...], help: str) -> Any:
    """A field for one of some words or numbers."""

    def read(value: object) -> str | int:
        for each in choices:
            if type(value) is type(each) and value == each:
                return each
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(map(str, choices))}, not {str(value)[:40]!r}")

    return dataclasses.field(default=default, metadata={"read": read, "help": help})


def switch(help: str) -> Any:
    """A field that is true or false (the default)."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f"must be true or false, not {str(value)[:40]!r}")
        return value

    return dataclasses.field(default=False, metadata={"read": read, "help": help})


def names(help: str) -> Any:
    """A field for a list of names."""

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise argparse.ArgumentTypeError(f"must be a list of names, not {str(value)[:40]}")
        return tuple(value)

    return dataclasses.field(default=(), metadata={"read": read, "help": help})


def _number(parse: Callable[[str], Any]) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise argparse.ArgumentTypeError(f"must be a number, not {str(value)[:40]!r}")
        return parse(repr(value))

    return read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every training has."""

    steps: int = number(20_000, whole(1), "optimiser steps in all")
    batch_size: int = number(8, whole(1, 4096), "samples a step and process")
    learning_rate: float = number(1e-4, real(0, 1, above=True), "peak learning rate")
    warmup: int = number(100, whole(0), "steps of linear warm-up")
    schedule: str = choice("constant", ("constant", "cosine"), "after the warm-up")
    weight_decay: float = number(1e-2, real(0, 1), "AdamW's")
    gradient_accumulation: int = number(1, whole(1, 4096), "batches that make one step")
    ema_decay: float = number(0.9999, real(0, 1, below=True), "decay of the averaged weights; 0: no average")
    mixed_precision: str | None = choice(None, ("no", "bf16", "fp16"), "autocast; default: accelerate's setting")
    checkpoint_every: int = number(500, whole(1), "steps between checkpoints")
    keep_checkpoints: int = number(2, whole(0), "how many are kept; 0: all")
    sample_every: int = number(500, whole(0), "steps between sample sheets; 0: none")
    log_every: int = number(20, whole(1), "steps between points of the curves")
    workers: int = number(2, whole(0, 1024), "data loading processes")
    seed: int = number(0, whole(0, 2**63 - 1), "seed of everything random")


def bundled() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def settle(settings: type[S], part: str, config: str, **given: int | None) -> S:
    """The settings of a training: those of a recipe (a bundled one's name, or a file), with those that are given.

    Raises:
        InputError: no such recipe, one without this part, or what is no setting.
    """
    path = RECIPES / f"{config}.toml" if config in bundled() else Path(config)
    recipe = _read(path)
    if unknown := sorted(recipe.keys() - set(PARTS)):
        raise InputError(f"{path}: there is no part {unknown[0][:40]!r}; a recipe has tables of {', '.join(PARTS)}.")
    if not isinstance(table := recipe.get(part), dict):
        raise InputError(
            f"{path} has no table [{part}]; it has {', '.join(recipe) or 'none'}. Choose another --config."
        )
    fields = {field.name: field for field in dataclasses.fields(settings)}
    if unknown := sorted(table.keys() - fields.keys()):
        raise InputError(f"{path}, [{part}]: there is no setting {unknown[0][:40]!r}; known are {', '.join(fields)}.")
    found = {}
    for name, value in table.items():
        try:
            found[name] = fields[name].metadata["read"](value)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{path}, [{part}]: {name} {error}") from error
    return settings(**(found | {name: value for name, value in given.items() if value is not None}))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no recipe {path}; give one of {', '.join(bundled())}, or a TOML file.")
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no recipe: expected TOML ({str(error)[:100]}).") from error
