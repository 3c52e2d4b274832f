"""`train-color-regressor`: the network that says how colours must change."""

import argparse

from ...files import iharmony
from ...synthesis.sources import LISTS
from ...training import color_regressor
from . import add_arguments as add_training_arguments
from . import add_dataset, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser, "what make-composites wrote: its photos and masks are used")
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes OUTPUT/color_regressor.safetensors."""
    chosen = settings(color_regressor.Settings, "color_regressor", args)
    color_regressor.train(*iharmony.located(args.dataset, LISTS["train"]), args.output, chosen)
