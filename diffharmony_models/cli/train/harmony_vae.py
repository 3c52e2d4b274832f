"""`train-harmony-vae`: the Harmony-VAE from a VAE."""

import argparse

from ...files import iharmony
from ...synthesis.sources import LISTS
from ...training import harmony_vae
from . import add_arguments as add_training_arguments
from . import add_dataset, add_start, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser, "iHarmony4-shaped data set")
    add_start(parser, "checkpoint with a VAE to start from, or with a Harmony-VAE, which is trained on", required=True)
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes OUTPUT/harmony_vae.safetensors."""
    chosen = settings(harmony_vae.Settings, "harmony_vae", args)
    harmony_vae.train(*iharmony.located(args.dataset, LISTS["train"]), args.output, chosen, start=args.start)
