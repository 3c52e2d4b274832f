"""`train-refiner`: stage 2, the residual UNet that brings back what the VAE lost, trained on stage 1's real outputs."""

import argparse
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint, geometry
from ..errors import InputError
from ..harmonize import resolution
from ..numbers import whole
from ..refiner import INPUTS, Refiner, stack
from . import cache, data, loop, sheets
from .harmonizer import recolored


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
    parser.add_argument(
        "--widths",
        type=whole(1, 2048),
        nargs="+",
        default=(64, 128, 256, 256),
        help="of a new refiner, multiples of --groups (default %(default)s, small)",
    )
    parser.add_argument(
        "--layers", type=whole(1, 16), default=2, help="residual layers a level of a new refiner (default %(default)s)"
    )
    parser.add_argument(
        "--groups",
        type=whole(1, 1024),
        default=32,
        help="normalisation groups of a new refiner; every width is a multiple of it (default %(default)s)",
    )
    parser.add_argument(
        "--in-channels",
        type=int,
        choices=sorted(INPUTS),
        default=7,
        help="7: harmonized, mask, composite; 4: without the composite; 3: harmonized",
    )
    parser.add_argument(
        "--size", type=whole(16, 2048), default=256, help="resolution of the refinement (default %(default)s)"
    )
    parser.add_argument(
        "--resolution", type=resolution, default=0, help="resolution of stage 1 (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--crop",
        type=whole(0, 2048, multiple_of=8),
        default=0,
        help="train on random crops of this side, a multiple of 8 (default: whole pictures)",
    )
    parser.add_argument(
        "--cache-outputs",
        type=whole(0, 10_000),
        default=0,
        metavar="K",
        help="run stage 1 K times for every pair before training, each time with another "
        "crop and noise, instead of anew in each step (default %(default)s: off)",
    )
    parser.add_argument(
        "--limit", type=whole(0), default=0, help="use only this many pairs, evenly spread over the list (default: all)"
    )
    loop.add_arguments(parser, steps=50_000, batch_size=16, learning_rate=1e-4)


def run(args: argparse.Namespace) -> None:
    """Trains and writes OUTPUT/diffharmony.safetensors: stage 1, VAE, null text and the refiner in one file."""
    from ..pipeline import DiffHarmony

    if args.crop > args.size:
        raise InputError(f"--crop must be at most --size ({args.size}), got {args.crop}")
    loop.seeded(args)
    start = checkpoint.read(args.start)
    stage1 = DiffHarmony.from_checkpoint(start, dtype=torch.float32)
    if start.refiner is not None:
        refiner = checkpoint.build_refiner(start.refiner).float()
    else:
        refiner = Refiner(
            in_channels=args.in_channels,
            block_out_channels=tuple(args.widths),
            layers_per_block=args.layers,
            norm_num_groups=args.groups,
        )
    for name, side in (("--size", args.size), ("--crop", args.crop)):
        if side % refiner.factor:
            raise InputError(
                f"{name} must be a multiple of {refiner.factor} for a refiner of so many levels, got {side}"
            )
    pairs = data.Pairs(args.dataset, args.list, args.size, limit=args.limit)

    def harmonize(batch, seeds):
        """Stage 1's picture of a batch, which begins from what a colour regressor makes of it, where there is one."""
        if stage1.color_regressor is not None:
            batch = {**batch, "composite": recolored(stage1.color_regressor, batch["composite"], batch["mask"])}
        return {**batch, "harmonized": harmonized(stage1, batch, args.resolution, args.size, seeds)}

    if args.cache_outputs:
        made_of = {
            "stage1": cache.fingerprint(stage1.unet),
            "colors": cache.fingerprint(stage1.color_regressor) if stage1.color_regressor else "",
            "resolution": str(args.resolution),
            "limit": str(args.limit),
        }
        samples = cache.Cached(
            args.output / "stage1.safetensors", pairs, args, args.cache_outputs, harmonize, torch.uint8, made_of
        )
    else:
        samples = pairs
    if args.crop:
        samples = Crops(samples, args.crop)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not args.cache_outputs:
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

    def sample(model, step):
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

    def export(model):
        start.refiner = checkpoint.part_from(model)
        start.refiner.config["sample_size"] = args.size
        checkpoint.write(start, args.output / "diffharmony.safetensors")

    loop.train(args, refiner.train(), samples, loss, export=export, sample=sample)


def harmonized(stage1, batch: dict[str, torch.Tensor], resolution: int, size: int, seeds: list[int]) -> torch.Tensor:
    """Stage 1's picture of a batch, scaled to the refinement's size: [B, 3, size, size] in [0, 1]."""
    latents = stage1.harmonize_latents(batch["composite"], batch["mask"], resolution=resolution, seeds=seeds)
    return geometry.resize(stage1.decode(latents), (size, size)).clone()


def to(stage1, device) -> None:
    for part in (stage1.unet, stage1.vae, stage1.color_regressor):
        if part is not None:
            part.to(device)


class Crops:
    """The same random square of every picture of a sample."""

    def __init__(self, samples, side: int):
        self.samples, self.side = samples, side

    def __len__(self) -> int:
        return len(self.samples)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        sample = self.samples.get(index, rng)
        height, width = sample["mask"].shape[-2:]
        top, left = int(rng.integers(0, height - self.side + 1)), int(rng.integers(0, width - self.side + 1))
        return {name: value[:, top : top + self.side, left : left + self.side] for name, value in sample.items()}
