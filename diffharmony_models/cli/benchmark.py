"""The `benchmark` command."""

import argparse
from pathlib import Path

from ..benchmark.runs import PARTS, Settings
from ..benchmark.runs import run as measure
from ..numbers import whole
from . import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        choices=PARTS,
        help="one part: the demo command, full-size weights (4 GB of disk in TMPDIR, 6 GB of memory), the import, or "
        "ComfyUI (default: all; ComfyUI with --comfyui only)",
    )
    parser.add_argument("--device", metavar="D", default=Settings.device, help=arguments.DEVICE)
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=whole(1, 1000),
        default=Settings.repeats,
        help="runs behind each figure; times are medians (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        type=whole(2, 1000),
        default=Settings.steps,
        help="sampling steps of full-size weights (default: %(default)s)",
    )
    parser.add_argument(
        "--comfyui",
        metavar="DIR",
        type=Path,
        help="where ComfyUI's main.py is: full-size weights as nodes, beside the core's own graph, at 1024",
    )


def run(args: argparse.Namespace) -> int:
    """Returns 0, whether bounds are met or not: the tables say it."""
    measure(Settings(args.only, args.device, args.repeats, steps=args.steps, comfyui=args.comfyui))
    return 0
