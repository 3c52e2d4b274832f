"""`train-refiner`: stage 2, the refinement UNet."""

import argparse

from ...files import iharmony
from ...synthesis.sources import LISTS
from ...training import refiner
from . import add_arguments as add_training_arguments
from . import add_dataset, add_start, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser, "iHarmony4-shaped data set")
    add_start(parser, "checkpoint with stage 1 (kept as it is); its refiner, if any, is trained on", required=True)
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes OUTPUT/diffharmony.safetensors."""
    chosen = settings(refiner.Settings, "refiner", args)
    refiner.train(*iharmony.located(args.dataset, LISTS["train"]), args.output, chosen, start=args.start)
