"""What a weight file or folder is: reading, writing, converting and building.

Folders in the published layout (a diffusers pipeline with a refiner and a Harmony-VAE beside it), single parts, and our
one-file checkpoint: one safetensors file with `unet.*`, `vae.*`, `refiner.*`, `harmony_vae.*`, `color_regressor.*` in
diffusers' or our names, `null_text`, and each part's config as JSON in the metadata.
"""

from pathlib import Path

import torch

from .kinds import PARTS
from .parts import Part, build, part_from
from .reading import STEPS, Checkpoint, Reader, read
from .store import convert, describe, write

__all__ = [
    "PARTS",
    "STEPS",
    "Checkpoint",
    "Part",
    "Reader",
    "build",
    "build_color_regressor",
    "build_harmony_vae",
    "build_refiner",
    "build_unet",
    "build_vae",
    "bundled",
    "convert",
    "describe",
    "part_from",
    "read",
    "write",
]


def bundled() -> Path:
    """Where the checkpoint that ships with the package lies."""
    return Path(__file__).parents[1] / "weights" / "diffharmony-small.safetensors"


def build_unet(part: Part) -> torch.nn.Module:
    """A diffusers UNet2DConditionModel; see `build`."""
    return build("unet", part)


def build_vae(part: Part) -> torch.nn.Module:
    """A diffusers AutoencoderKL; see `build`."""
    return build("vae", part)


def build_refiner(part: Part) -> torch.nn.Module:
    """A `networks.refiner.Refiner`; see `build`."""
    return build("refiner", part)


def build_harmony_vae(part: Part) -> torch.nn.Module:
    """A `networks.harmony_vae.HarmonyVAE`; see `build`."""
    return build("harmony_vae", part)


def build_color_regressor(part: Part) -> torch.nn.Module:
    """A `networks.color_regressor.ColorRegressor`; see `build`."""
    return build("color_regressor", part)
