"""The autoencoder: a small f8 VAE from nothing, or the fine-tuning of a given one."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .. import checkpoint
from ..errors import InputError
from ..numbers import real, whole
from . import data, loop, recipe, state
from .initialization import block_means

SCALING_FACTOR = 0.18215
# Added under the root of a sample's mean squared error, so that a perfect sample's slope stays finite.
ROOT_FLOOR = 1e-5
KL_WEIGHT = 1e-6
COLOR_WEIGHT = 0.5  # of the L1 between 8 times reduced pictures


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[autoencoder]` of a recipe. Widths, groups and layers are those of a new VAE.

    With one or two channels a normalisation group a picture's mean colour would be normalised away, so there are at
    most as many groups as a quarter of the first width.
    """

    learning_rate: float = recipe.number(5e-4, real(0, 1, above=True), "peak learning rate")
    widths: tuple[int, ...] = recipe.several((32, 32, 64, 128), whole(1, 2048), "channels of the levels", count=4)
    groups: int = recipe.number(8, whole(1, 1024), "normalisation groups")
    layers: int = recipe.number(1, whole(1, 16), "residual layers a level")
    size: int = recipe.number(128, whole(16, 2048, multiple_of=8), "side of the crops, a multiple of 8")


def train(given: list[Path], output: Path, settings: Settings, *, start: Path | None = None) -> None:
    """Trains and writes `output`/vae.safetensors.

    Args:
        given: data sets, folders of photos and index files, as for `data.training_photos`.
        start: checkpoint whose VAE is trained on; None: a new one.

    Raises:
        InputError: inputs or settings that do not fit, or what `loop.train` refuses.
    """
    loop.seeded(settings)
    groups, widths = settings.groups, settings.widths
    if not start and (4 * groups > min(widths) or any(width % groups for width in widths)):
        raise InputError(
            f"The recipe's groups ({groups}) do not fit its widths {list(widths)}: every width must be a multiple of "
            "them, at least four times as much."
        )
    paths = data.training_photos(given)
    vae = started(start) if start else _new(settings)
    made_of = {"weights of --from": state.digest(vae.state_dict()) if start else "none"}
    photos = data.Photos(paths, settings.size)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        target = (batch["image"] * 2 - 1).contiguous(memory_format=torch.channels_last)
        decoded, mean, log_variance = model(target, generator=generator)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        error = (decoded.float() - target).square().mean(dim=(1, 2, 3))
        value = (error + ROOT_FLOOR).sqrt().mean() + COLOR_WEIGHT * color_loss(decoded, target) + KL_WEIGHT * kl
        return value, {"kl": kl, "psnr": -10 * torch.log10(error / 4).mean()}

    fixed = data.shown(photos, 8)["image"]

    def sample(model: torch.nn.Module) -> list[torch.Tensor]:
        decoded = model.decode_mode(fixed.to(next(model.parameters()).device) * 2 - 1)
        return [fixed, decoded / 2 + 0.5]

    def export(model: torch.nn.Module) -> None:
        number = min(512, len(photos))
        normalize_latents(
            model.vae, (photos.get(index, np.random.default_rng((17, index)))["image"] for index in range(number))
        )
        part = checkpoint.Part(config=dict(model.vae.config), state=model.vae.state_dict())
        checkpoint.write(checkpoint.Checkpoint(name="vae", vae=part), output / "vae.safetensors")

    vae.to(memory_format=torch.channels_last)
    loop.train(settings, output, Autoencoder(vae), photos, loss, export=export, sample=sample, made_of=made_of)


class Autoencoder(torch.nn.Module):
    """Encode, sample, decode in one forward pass, so that one wrapper serves data-parallel training."""

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.vae = vae

    def forward(
        self, images: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior.mean, posterior.logvar

    def decode_mode(self, images: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(self.vae.encode(images).latent_dist.mode()).sample


def color_loss(decoded: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 between the pictures averaged over 8×8 blocks: the colour of a latent's own patch."""
    return F.avg_pool2d(decoded - target, 8).abs().mean()


def started(path: Path) -> torch.nn.Module:
    """The VAE that a training starts from."""
    part = checkpoint.read(path).vae
    if part is None:
        raise InputError(f"{path} holds no VAE; --from wants a checkpoint with one")
    return checkpoint.build_vae(part).float().train()


def _new(settings: Settings) -> torch.nn.Module:
    from diffusers.models import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        latent_channels=4,
        norm_num_groups=settings.groups,
        scaling_factor=SCALING_FACTOR,
        sample_size=settings.size,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    block_means(vae)
    return vae


@torch.no_grad()
def normalize_latents(vae: torch.nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Folds a scale and a shift per channel into `quant_conv` and `post_quant_conv`, so that latents × scaling factor
    have mean 0 and deviation 1.

    The decoded picture does not change: with z' = a (z + b), post_quant_conv is given the inverse.

    Args:
        vae: an AutoencoderKL, changed in place.
        images: iterable of [3, H, W] in [0, 1].
    """
    device = next(vae.parameters()).device
    latents = torch.cat(
        [vae.encode(image[None].to(device) * 2 - 1).latent_dist.mode().flatten(2) for image in images], dim=2
    )[0].double()
    shift = -latents.mean(dim=1)
    scale = 1 / (latents.std(dim=1) * vae.config.scaling_factor)
    if not torch.isfinite(scale).all():
        raise InputError(
            "A latent channel is the same everywhere in these photos. Train on photos that are not all one colour."
        )
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(scale)
    weight, bias = quant.weight.double(), quant.bias.double()
    weight[:channels] *= scale[:, None, None, None]
    bias[:channels] = (bias[:channels] + shift) * scale
    bias[channels:] += 2 * scale.log()
    quant.weight.copy_(weight)
    quant.bias.copy_(bias)
    weight = post.weight.double()
    post.bias.copy_(post.bias.double() - (weight * shift[None, :, None, None]).sum(dim=(1, 2, 3)))
    post.weight.copy_(weight / scale[None, :, None, None])
