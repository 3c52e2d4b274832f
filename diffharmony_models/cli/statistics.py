"""`statistics`: what the pairs of data sets are like, side by side."""

import argparse
from pathlib import Path

from ..files import iharmony
from ..synthesis import sources, statistics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "datasets",
        type=Path,
        nargs="+",
        metavar="DATASET",
        help=f"iHarmony4-shaped data sets ({sources.LISTS['test']} is read), or lists in them",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table as Markdown."""
    print("| | " + " | ".join(statistics.COLUMNS) + " |")
    print("|---|" + "---:|" * len(statistics.COLUMNS))
    for given in args.datasets:
        for name, pairs in statistics.groups(*iharmony.located(given, sources.LISTS["test"])).items():
            print(f"| {name} | " + " | ".join(statistics.row(pairs)) + " |")
    return 0
