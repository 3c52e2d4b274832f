"""`train-refiner`: stage 2, the residual UNet that brings back what the VAE lost, trained on stage 1's real outputs."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import checkpoint, geometry
from ..errors import InputError
from ..networks.refiner import INPUTS, Refiner, stack
from ..numbers import whole
from ..settings import LARGEST_RESOLUTION
from ..settings import Settings as Harmonizing
from . import cache, data, loop, recipe, sheets
from .harmonizer import recolored

if TYPE_CHECKING:
    from ..pipeline import DiffHarmony


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[refiner]` of a recipe. Widths, layers, groups and in_channels are those of a new refiner."""

    steps: int = recipe.number(50_000, whole(1), "optimiser steps in all")
    batch_size: int = recipe.number(16, whole(1, 4096), "samples a step and process")
    widths: tuple[int, ...] = recipe.several((64, 128, 256, 256), whole(1, 2048), "channels of the levels")
    layers: int = recipe.number(2, whole(1, 16), "residual layers a level")
    groups: int = recipe.number(32, whole(1, 1024), "normalisation groups")
    in_channels: int = recipe.choice(
        7, tuple(sorted(INPUTS)), "7: harmonized, mask, composite; 4: without the composite; 3: harmonized"
    )
    size: int = recipe.number(256, whole(16, 2048), "resolution of the refinement")
    resolution: int = recipe.number(0, whole(0, LARGEST_RESOLUTION), "resolution of stage 1; 0: the checkpoint's own")
    crop: int = recipe.number(0, whole(0, 2048, multiple_of=8), "side of random crops, a multiple of 8; 0: none")
    cache_outputs: int = recipe.number(
        0,
        whole(0, 10_000),
        "so many times stage 1 is run for every pair before training, each time with another crop and noise, instead "
        "of anew in each step; 0: anew",
    )
    limit: int = recipe.number(0, whole(0), "only so many pairs, evenly spread over the list; 0: all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="iHarmony4-shaped data set")
    parser.add_argument(
        "--list", type=Path, default=Path("IHD_train.txt"), help="list in the data set (default %(default)s)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        required=True,
        help="checkpoint with stage 1 (kept as it is); its refiner, if any, is trained on",
    )
    loop.add_arguments(parser, Settings, "size")


def run(args: argparse.Namespace) -> None:
    """Trains and writes OUTPUT/diffharmony.safetensors: stage 1, VAE, null text and the refiner in one file."""
    from ..pipeline import DiffHarmony

    settings = recipe.settle(Settings, "refiner", args)
    if settings.crop > settings.size:
        raise InputError(f"The recipe's crop ({settings.crop}) is larger than its size ({settings.size}).")
    loop.seeded(settings)
    start = checkpoint.read(args.start)
    stage1 = DiffHarmony.from_checkpoint(start, dtype=torch.float32)
    if start.refiner is not None:
        refiner = checkpoint.build_refiner(start.refiner).float()
    else:
        refiner = Refiner(
            in_channels=settings.in_channels,
            block_out_channels=settings.widths,
            layers_per_block=settings.layers,
            norm_num_groups=settings.groups,
        )
    for name, side in (("size", settings.size), ("crop", settings.crop)):
        if side % refiner.factor:
            raise InputError(
                f"The {name} must be a multiple of {refiner.factor} for a refiner of so many levels, got {side}"
            )
    pairs = data.Pairs(args.dataset, args.list, settings.size, limit=settings.limit)

    def harmonize(batch: dict[str, torch.Tensor], seeds: list[int]) -> dict[str, torch.Tensor]:
        """Stage 1's picture of a batch, which begins from what a colour regressor makes of it, where there is one."""
        if stage1.color_regressor is not None:
            batch = {**batch, "composite": recolored(stage1.color_regressor, batch["composite"], batch["mask"])}
        return {**batch, "harmonized": harmonized(stage1, batch, settings.resolution, settings.size, seeds)}

    samples: data.Samples = pairs
    if settings.cache_outputs:
        made_of = {
            "stage1": cache.fingerprint(stage1.unet),
            "colors": cache.fingerprint(stage1.color_regressor) if stage1.color_regressor else "",
            "dataset": str(args.dataset),
            "list": str(args.list),
            "size": str(settings.size),
            "resolution": str(settings.resolution),
            "limit": str(settings.limit),
        }
        path, repeats = args.output / "stage1.safetensors", settings.cache_outputs
        samples = cache.Cached(path, pairs, settings, repeats, harmonize, torch.uint8, made_of)
    if settings.crop:
        samples = Crops(samples, settings.crop)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not settings.cache_outputs:
            to(stage1, batch["mask"].device)
            seeds = torch.randint(2**62, (len(batch["mask"]),), generator=generator, device=generator.device).tolist()
            batch = harmonize(batch, seeds)
        target = batch["real"] * 2 - 1
        refined = model(stack(batch["harmonized"], batch["composite"], batch["mask"], refiner.config["in_channels"]))
        value = (refined - target).square().mean()
        with torch.no_grad():
            before = (batch["harmonized"] * 2 - 1 - target).square() * batch["mask"]
            after = (refined - target).square() * batch["mask"]
        return value, {"foreground_gain_db": 10 * torch.log10(before.sum() / after.sum())}

    shown = [
        samples.get(index, np.random.default_rng((17, index)))
        for index in range(0, len(samples), max(1, len(samples) // 6))
    ][:6]

    def sample(model: torch.nn.Module, step: int) -> None:
        batch = {
            name: torch.stack([item[name] for item in shown]).to(next(model.parameters()).device) for name in shown[0]
        }
        if "harmonized" not in batch:
            batch = harmonize(batch, list(range(len(shown))))
        with torch.no_grad():
            refined = (
                model(stack(batch["harmonized"], batch["composite"], batch["mask"], refiner.config["in_channels"])) / 2
                + 0.5
            )
        sheets.save(
            [batch[name].cpu() for name in ("composite", "mask", "harmonized")] + [refined.cpu(), batch["real"].cpu()],
            args.output / "samples" / f"{step:07d}.jpg",
        )

    def export(model: torch.nn.Module) -> None:
        start.refiner = checkpoint.part_from(model)
        start.refiner.config["sample_size"] = settings.size
        checkpoint.write(start, args.output / "diffharmony.safetensors")

    loop.train(settings, args.output, refiner.train(), samples, loss, export=export, sample=sample)


def harmonized(
    stage1: "DiffHarmony", batch: dict[str, torch.Tensor], resolution: int, size: int, seeds: list[int]
) -> torch.Tensor:
    """Stage 1's picture of a batch, scaled to the refinement's size: [B, 3, size, size] in [0, 1]."""
    latents = stage1.harmonize_latents(
        batch["composite"], batch["mask"], Harmonizing(resolution=resolution), seeds=seeds
    )
    return geometry.resize(stage1.decode(latents), (size, size)).clone()


def to(stage1: "DiffHarmony", device: torch.device) -> None:
    for part in (stage1.unet, stage1.vae, stage1.color_regressor):
        if part is not None:
            part.to(device)


class Crops:
    """The same random square of every picture of a sample."""

    def __init__(self, samples: data.Samples, side: int):
        self.samples, self.side = samples, side

    def __len__(self) -> int:
        return len(self.samples)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        sample = self.samples.get(index, rng)
        height, width = sample["mask"].shape[-2:]
        top, left = int(rng.integers(0, height - self.side + 1)), int(rng.integers(0, width - self.side + 1))
        return {name: value[:, top : top + self.side, left : left + self.side] for name, value in sample.items()}
