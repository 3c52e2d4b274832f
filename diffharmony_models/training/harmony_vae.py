"""The Harmony-VAE, which takes detail from the composite while it decodes, from a VAE."""

from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checkpoint
from ..numbers import real, whole
from . import autoencoder, data, loop, recipe, state


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[harmony_vae]` of a recipe."""

    learning_rate: float = recipe.number(5e-4, real(0, 1, above=True), "peak learning rate")
    size: int = recipe.number(128, whole(16, 2048, multiple_of=8), "side of the pictures, a multiple of 8")


def train(dataset: Path, list_file: str, output: Path, settings: Settings, *, start: Path) -> None:
    """Trains and writes `output`/harmony_vae.safetensors: what `start` has, with the Harmony-VAE added.

    dataset: iHarmony4-shaped, with the list `list_file`. start: checkpoint with a VAE, or with a Harmony-VAE, which is
    trained on. InputError for inputs that do not fit and for what `loop.train` refuses.
    """
    from ..networks.harmony_vae import HarmonyVAE

    loop.seeded(settings)
    given = checkpoint.read(start)
    if given.harmony_vae is not None:
        vae = checkpoint.build_harmony_vae(given.harmony_vae).float().train()
    else:
        vae = HarmonyVAE.from_vae(autoencoder.started(start)).train()
    made_of = {"weights of --from": state.digest(vae.state_dict())}
    pairs = data.Pairs(dataset, list_file, settings.size)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        target = batch["real"] * 2 - 1
        l1 = (model(target, batch["composite"] * 2 - 1, batch["mask"]) - target).abs().mean()
        return l1, {"l1": l1}

    fixed = data.shown(pairs, 6)

    def sample(model: torch.nn.Module) -> list[torch.Tensor]:
        batch = {name: value.to(next(model.parameters()).device) for name, value in fixed.items()}
        decoded = model(batch["real"] * 2 - 1, batch["composite"] * 2 - 1, batch["mask"]) / 2 + 0.5
        return [batch["composite"], batch["mask"], decoded, batch["real"]]

    def export(model: torch.nn.Module) -> None:
        given.harmony_vae = checkpoint.part_from(model.vae)
        checkpoint.write(given, output / "harmony_vae.safetensors")

    loop.train(settings, output, Conditioned(vae), pairs, loss, export=export, sample=sample, made_of=made_of)


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
