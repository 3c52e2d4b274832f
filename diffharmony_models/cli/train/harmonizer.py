"""`train-harmonizer`: stage 1, the latent diffusion UNet."""

import argparse
from pathlib import Path

from ...files import iharmony
from ...synthesis.sources import LISTS
from ...training import harmonizer
from . import add_arguments as add_training_arguments
from . import add_dataset, add_start, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser, "iHarmony4-shaped data set (iHarmony4 itself, or what make-composites wrote)")
    add_start(parser, "checkpoint to start from: an SD 1.5 inpainting folder, or an earlier result (default: none)")
    parser.add_argument("--vae", type=Path, help="checkpoint that brings the VAE where --from has none, or another one")
    parser.add_argument(
        "--colors", type=Path, help="checkpoint with a colour regressor, whose result is stage 1's condition"
    )
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Writes OUTPUT/harmonizer.safetensors."""
    chosen = settings(harmonizer.Settings, "harmonizer", args, "published" if args.start else "small")
    folder, list_file = iharmony.located(args.dataset, LISTS["train"])
    harmonizer.train(folder, list_file, args.output, chosen, start=args.start, vae=args.vae, colors=args.colors)
