"""The commands that train: one file each; what their flags have in common is here.

Every setting of a training stands in its recipe; a flag is there only for what changes from run to run.
"""

import argparse
import os
from pathlib import Path

from ...numbers import whole
from ...synthesis.sources import LISTS
from ...training import recipe


def add_dataset(parser: argparse.ArgumentParser, help: str) -> None:
    """The data set, which `iharmony.located` splits into folder and list."""
    parser.add_argument("dataset", type=Path, help=f"{help}; {LISTS['train']} is read, or a list in it that is named")


def add_start(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """`--from`: the checkpoint that a training starts from."""
    parser.add_argument("--from", dest="start", metavar="CHECKPOINT", type=Path, required=required, help=help)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every trainer has: without a default where the recipe has one."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--output", type=folder, required=True, help="folder of the run: checkpoints, curves, samples, result"
    )
    group.add_argument(
        "--config",
        metavar="RECIPE",
        help=f"where the settings come from: {', '.join(recipe.bundled())}, or a TOML file (default: small; what "
        "starts from an inpainting checkpoint: published)",
    )
    for name, parse, text in (
        ("--steps", whole(1), "optimiser steps in all"),
        ("--batch-size", whole(1, 4096), "samples a step and process"),
        ("--workers", whole(0, 1024), "data loading processes"),
        ("--seed", whole(0, 2**63 - 1), "seed of everything random"),
    ):
        group.add_argument(name, type=parse, help=f"{text} (default: the recipe's)")


def settings(kind: type[recipe.S], part: str, args: argparse.Namespace, default: str = "small") -> recipe.S:
    """The settings of a run: those of the recipe, with what the flags say. InputError as `recipe.settle`."""
    return recipe.settle(
        kind,
        part,
        args.config or default,
        steps=args.steps,
        batch_size=args.batch_size,
        workers=args.workers,
        seed=args.seed,
    )


def folder(text: str) -> Path:
    """The type of `--output`: a folder, or the name of one that can be made."""
    path = Path(text)
    nearest = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"{nearest} is {'write-protected' if nearest.is_dir() else 'not a folder'}; give another folder"
        )
    return path
