"""`train-harmony-vae`: the Harmony-VAE, which takes detail from the composite while it decodes, from a VAE."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint
from ..numbers import real, whole
from . import autoencoder, data, loop, recipe, sheets


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[harmony_vae]` of a recipe."""

    learning_rate: float = recipe.number(5e-4, real(0, 1, above=True), "peak learning rate")
    size: int = recipe.number(128, whole(16, 2048, multiple_of=8), "side of the pictures, a multiple of 8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, help="iHarmony4-shaped data set")
    parser.add_argument("--list", type=Path, default=Path("IHD_train.txt"), help="list in it (default %(default)s)")
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        required=True,
        help="checkpoint with the VAE to start from, or with a Harmony-VAE, which is trained on",
    )
    loop.add_arguments(parser, Settings, "size")


def run(args: argparse.Namespace) -> None:
    """Trains and writes OUTPUT/harmony_vae.safetensors: what --from has, with the Harmony-VAE added."""
    from ..networks.harmony_vae import HarmonyVAE

    settings = recipe.settle(Settings, "harmony_vae", args)
    loop.seeded(settings)
    given = checkpoint.read(args.start)
    if given.harmony_vae is not None:
        vae = checkpoint.build_harmony_vae(given.harmony_vae).float().train()
    else:
        vae = HarmonyVAE.from_vae(autoencoder.start(args.start)).train()
    pairs = data.Pairs(args.dataset, args.list, settings.size)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        target = batch["real"] * 2 - 1
        l1 = (model(target, batch["composite"] * 2 - 1, batch["mask"]) - target).abs().mean()
        return l1, {"l1": l1}

    shown = [
        pairs.get(index, np.random.default_rng((17, index))) for index in range(0, len(pairs), max(1, len(pairs) // 6))
    ][:6]

    def sample(model: torch.nn.Module, step: int) -> None:
        batch = {
            name: torch.stack([item[name] for item in shown]).to(next(model.parameters()).device) for name in shown[0]
        }
        with torch.no_grad():
            decoded = model(batch["real"] * 2 - 1, batch["composite"] * 2 - 1, batch["mask"]) / 2 + 0.5
        sheets.save(
            [batch["composite"].cpu(), batch["mask"].cpu(), decoded.cpu(), batch["real"].cpu()],
            args.output / "samples" / f"{step:07d}.jpg",
        )

    def export(model: torch.nn.Module) -> None:
        given.harmony_vae = checkpoint.part_from(model.vae)
        checkpoint.write(given, args.output / "harmony_vae.safetensors")

    loop.train(settings, args.output, Conditioned(vae), pairs, loss, export=export, sample=sample)


class Conditioned(torch.nn.Module):
    """The Harmony-VAE in one forward pass: the real picture's latent (its mode), decoded beside the composite. Images
    in [-1, 1].

    The encoder of the real picture is frozen, so that the latents stay those that stage 1 was trained on.
    """

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.vae = vae
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    def forward(self, real: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            latent = self.vae.encode(real).latent_dist.mode()
        return self.vae.decode(latent, self.vae.encode_condition(composite, mask))
