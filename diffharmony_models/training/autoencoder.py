"""`train-autoencoder`: a small f8 VAE from nothing, or the fine-tuning of a given one."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .. import checkpoint
from ..errors import InputError
from ..numbers import real, whole
from . import data, loop, recipe, sheets

SCALING_FACTOR = 0.18215
# Added under the root of a sample's mean squared error, so that a perfect sample's slope stays finite.
ROOT_FLOOR = 1e-5


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
    kl_weight: float = recipe.number(1e-6, real(0, 1e6), "weight of the KL term")
    color_weight: float = recipe.number(1.0, real(0, 1e6), "weight of the L1 between 8 times reduced pictures")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos",
        type=Path,
        nargs="+",
        help="what make-composites wrote (its test photos are left out, also of the other sources), folders of photos, "
        "index files (.jsonl)",
    )
    parser.add_argument(
        "--from", dest="start", type=Path, help="checkpoint whose VAE is trained on (default: a new one)"
    )
    loop.add_arguments(parser, Settings, "size")


def run(args: argparse.Namespace) -> None:
    """Trains and writes OUTPUT/vae.safetensors."""
    settings = recipe.settle(Settings, "autoencoder", args)
    loop.seeded(settings)
    groups, widths = settings.groups, settings.widths
    if not args.start and (4 * groups > min(widths) or any(width % groups for width in widths)):
        raise InputError(
            f"The recipe's groups ({groups}) do not fit its widths {list(widths)}: every width must be a multiple of "
            "them, at least four times as much."
        )
    paths = data.training_photos(args.photos)
    vae = start(args.start) if args.start else _new(settings)
    photos = data.Photos(paths, settings.size)

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        target = (batch["image"] * 2 - 1).contiguous(memory_format=torch.channels_last)
        decoded, mean, log_variance = model(target, generator=generator)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        error = (decoded.float() - target).square().mean(dim=(1, 2, 3))
        value = (
            (error + ROOT_FLOOR).sqrt().mean()
            + settings.color_weight * color_loss(decoded, target)
            + settings.kl_weight * kl
        )
        return value, {"kl": kl, "psnr": -10 * torch.log10(error / 4).mean()}

    fixed = torch.stack(
        [
            photos.get(i, np.random.default_rng((17, i)))["image"]
            for i in range(0, len(photos), max(1, len(photos) // 8))
        ][:8]
    )

    def sample(model: torch.nn.Module, step: int) -> None:
        with torch.no_grad():
            decoded = model.decode_mode(fixed.to(next(model.parameters()).device) * 2 - 1)
        sheets.save([fixed, decoded.cpu() / 2 + 0.5], args.output / "samples" / f"{step:07d}.jpg")

    def export(model: torch.nn.Module) -> None:
        normalize_latents(
            model.vae, (photos.get(i, np.random.default_rng((17, i)))["image"] for i in range(min(512, len(photos))))
        )
        part = checkpoint.Part(config=dict(model.vae.config), state=model.vae.state_dict())
        checkpoint.write(checkpoint.Checkpoint(name="vae", vae=part), args.output / "vae.safetensors")

    vae.to(memory_format=torch.channels_last)
    loop.train(settings, args.output, Autoencoder(vae), photos, loss, export=export, sample=sample)


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


def start(path: Path) -> torch.nn.Module:
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


# Channels that carry red, green, blue through a new VAE, and constants ±ANCHOR in the same normalisation groups: they
# dominate a group's variance, so that a normalisation hardly touches the colours beside them.
COLORS, HIGH, LOW, ANCHOR = (0, 1, 4), (2, 5), (3, 6), 4.0
LIFT = 2.0  # added before a SiLU: there it is all but linear, with slope
SLOPE = 1.09


@torch.no_grad()
def block_means(vae: torch.nn.Module) -> None:
    """Starts a new VAE, in place, as the codec that keeps each 8×8 block's mean colour in its first three latents.

    From random weights a small VAE spends thousands of steps on brightness alone before it finds colour, which is what
    harmonization is about. Every residual branch begins at zero, the colours pass along the skip paths, and all the
    other channels are random as usual.
    """
    carried = [*COLORS, *HIGH, *LOW]

    def pass_on(conv: torch.nn.Conv2d, kernel: torch.Tensor | float) -> None:
        conv.weight[:, [*HIGH, *LOW]] = 0
        conv.weight[carried] = 0
        conv.bias[carried] = 0
        for channel in carried:
            conv.weight[channel, channel] = kernel

    def anchored(conv: torch.nn.Conv2d, gain: float) -> None:
        conv.weight[carried] = 0
        conv.bias[carried] = 0
        for source, channel in enumerate(COLORS):
            conv.weight[channel, source, 1, 1] = gain
        conv.bias[list(HIGH)], conv.bias[list(LOW)] = ANCHOR, -ANCHOR

    center, mean = torch.zeros(3, 3), torch.zeros(3, 3)
    center[1, 1], mean[:2, :2] = 1.0, 0.25
    for coder in (vae.encoder, vae.decoder):
        for name, module in coder.named_modules():
            if name.endswith("conv2") or name.endswith("to_out.0"):
                module.weight.zero_()
                module.bias.zero_()
            elif name.endswith("conv_shortcut"):
                pass_on(module, 1.0)
            elif name.endswith("downsamplers.0.conv"):
                pass_on(module, mean)
            elif name.endswith("upsamplers.0.conv"):
                pass_on(module, center)
        coder.conv_norm_out.bias[carried] = LIFT
        coder.conv_out.bias.zero_()
    lifted = LIFT * torch.sigmoid(torch.tensor(LIFT))
    groups = vae.config.norm_num_groups
    spread = (
        ANCHOR * (4 * groups / vae.config.block_out_channels[-1]) ** 0.5
    )  # a deviation of the encoder's first group
    anchored(vae.encoder.conv_in, 1.0)
    for latent, channel in enumerate(COLORS):
        vae.encoder.conv_out.weight[latent] = 0
        vae.encoder.conv_out.weight[latent, channel, 1, 1] = spread / SLOPE
        vae.encoder.conv_out.bias[latent] = -lifted * spread / SLOPE
    vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
    vae.quant_conv.bias.zero_()
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = -6.0
    vae.post_quant_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    vae.post_quant_conv.bias.zero_()
    anchored(vae.decoder.conv_in, 1.0)
    spread = ANCHOR * (2 * groups / vae.config.block_out_channels[0]) ** 0.5
    high = torch.tensor(ANCHOR / spread + LIFT)
    vae.decoder.conv_out.weight *= 0.1
    for color, (channel, anchor) in enumerate(zip(COLORS, (HIGH[0], HIGH[0], HIGH[1]))):
        vae.decoder.conv_out.weight[color] *= 0
        vae.decoder.conv_out.weight[color, channel, 1, 1] = spread / SLOPE
        vae.decoder.conv_out.weight[color, anchor, 1, 1] = -spread / SLOPE
        vae.decoder.conv_out.bias[color] = spread / SLOPE * (high * torch.sigmoid(high) - lifted)


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
