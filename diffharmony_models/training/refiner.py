"""Stage 2, the residual UNet that brings back what the VAE lost, trained on stage 1's real outputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import checkpoint, geometry, sampling
from ..errors import InputError
from ..networks.refiner import Refiner, stack
from ..numbers import whole
from ..settings import LARGEST_RESOLUTION
from ..settings import Settings as Harmonizing
from . import cache, data, loop, recipe, state
from .harmonizer import recolored

if TYPE_CHECKING:
    from ..pipeline import DiffHarmony


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[refiner]` of a recipe. Widths, layers and groups are those of a new refiner."""

    steps: int = recipe.number(50_000, whole(1), "optimiser steps in all")
    batch_size: int = recipe.number(16, whole(1, 4096), "samples a step and process")
    widths: tuple[int, ...] = recipe.several((64, 128, 256, 256), whole(1, 2048), "channels of the levels")
    layers: int = recipe.number(2, whole(1, 16), "residual layers a level")
    groups: int = recipe.number(32, whole(1, 1024), "normalisation groups")
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


def train(dataset: Path, list_file: str, output: Path, settings: Settings, *, start: Path) -> None:
    """Trains and writes `output`/diffharmony.safetensors: stage 1, VAE, null text and the refiner in one file.

    dataset: iHarmony4-shaped, with the list `list_file`. start: checkpoint with stage 1, which is kept as it is; its
    refiner, if any, is trained on. InputError for inputs that do not fit and for what `loop.train` refuses.
    """
    from ..pipeline import DiffHarmony

    if settings.crop > settings.size:
        raise InputError(f"The recipe's crop ({settings.crop}) is larger than its size ({settings.size}).")
    loop.seeded(settings)
    given = checkpoint.read(start)
    stage1 = DiffHarmony.from_checkpoint(given, dtype=torch.float32)
    if given.refiner is not None:
        refiner = checkpoint.build_refiner(given.refiner).float()
    else:
        refiner = Refiner(
            block_out_channels=settings.widths,
            layers_per_block=settings.layers,
            norm_num_groups=settings.groups,
        )
    for name, side in (("size", settings.size), ("crop", settings.crop)):
        if side % refiner.factor:
            raise InputError(
                f"The {name} must be a multiple of {refiner.factor} for a refiner of so many levels, got {side}"
            )
    networks = [part for part in (stage1.unet, stage1.vae, stage1.color_regressor) if part is not None]
    made_of = {
        "stage 1": state.digest(*(network.state_dict() for network in networks)),
        "refiner": state.digest(refiner.state_dict()) if given.refiner is not None else "none",
    }
    pairs = data.Pairs(dataset, list_file, settings.size, limit=settings.limit)

    def harmonize(batch: dict[str, torch.Tensor], seeds: list[int]) -> dict[str, torch.Tensor]:
        """Stage 1's picture of a batch, which begins from what a colour regressor makes of it, where there is one."""
        for network in networks:
            network.to(batch["mask"].device)
        if stage1.color_regressor is not None:
            batch = {**batch, "composite": recolored(stage1.color_regressor, batch["composite"], batch["mask"])}
        return {**batch, "harmonized": harmonized(stage1, batch, settings.resolution, settings.size, seeds)}

    samples: data.Samples = pairs
    if settings.cache_outputs:
        kept = {
            "stage 1": made_of["stage 1"],
            "dataset": str(dataset),
            "list": list_file,
            "size": str(settings.size),
            "resolution": str(settings.resolution),
            "limit": str(settings.limit),
        }
        path, repeats = output / "stage1.safetensors", settings.cache_outputs
        samples = cache.Cached(path, pairs, settings, repeats, harmonize, torch.uint8, kept)
    if settings.crop:
        samples = Crops(samples, settings.crop)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not settings.cache_outputs:
            seeds = torch.randint(2**62, (len(batch["mask"]),), generator=generator, device=generator.device).tolist()
            batch = harmonize(batch, seeds)
        target = batch["real"] * 2 - 1
        refined = model(stack(batch["harmonized"], batch["composite"], batch["mask"], refiner.config["in_channels"]))
        value = (refined - target).square().mean()
        with torch.no_grad():
            before = (batch["harmonized"] * 2 - 1 - target).square() * batch["mask"]
            after = (refined - target).square() * batch["mask"]
        return value, {"foreground_gain_db": 10 * torch.log10(before.sum() / after.sum())}

    fixed = data.shown(samples, 6)

    def sample(model: torch.nn.Module) -> list[torch.Tensor]:
        batch = {name: value.to(next(model.parameters()).device) for name, value in fixed.items()}
        if "harmonized" not in batch:
            batch = harmonize(batch, list(range(len(batch["mask"]))))
        refined = model(stack(batch["harmonized"], batch["composite"], batch["mask"], refiner.config["in_channels"]))
        return [batch[name] for name in ("composite", "mask", "harmonized")] + [refined / 2 + 0.5, batch["real"]]

    def export(model: torch.nn.Module) -> None:
        given.refiner = checkpoint.part_from(model)
        given.refiner.config["sample_size"] = settings.size
        checkpoint.write(given, output / "diffharmony.safetensors")

    loop.train(settings, output, refiner.train(), samples, loss, export=export, sample=sample, made_of=made_of)


def harmonized(
    stage1: "DiffHarmony", batch: dict[str, torch.Tensor], resolution: int, size: int, seeds: list[int]
) -> torch.Tensor:
    """Stage 1's picture of a batch, scaled to the refinement's size: [B, 3, size, size] in [0, 1]."""
    latents = stage1.harmonize_latents(
        batch["composite"], batch["mask"], Harmonizing(resolution=resolution), noise=sampling.seeded(seeds)
    )
    return geometry.resize(stage1.decode(latents), (size, size))


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
