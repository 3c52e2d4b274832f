"""`train-autoencoder`: the VAE."""

import argparse
from pathlib import Path

from ...training import autoencoder
from . import add_arguments as add_training_arguments
from . import add_start, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos",
        type=Path,
        nargs="+",
        help="what make-composites wrote (its test photos are left out, also of the other sources), folders of photos, "
        "index files (.jsonl)",
    )
    add_start(parser, "checkpoint whose VAE is trained on (default: a new one)")
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes OUTPUT/vae.safetensors."""
    chosen = settings(autoencoder.Settings, "autoencoder", args)
    autoencoder.train(args.photos, args.output, chosen, start=args.start)
