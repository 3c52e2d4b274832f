"""`train-harmonizer`: stage 1, the inpainting UNet that harmonizes in latent space."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint, geometry, sampling
from ..errors import InputError
from ..networks.color_regressor import ColorRegressor, apply_change
from ..numbers import real, whole
from . import data, loop, recipe, sheets
from .color_regressor import made

# The weight of the published loss: a small foreground counts more, up to this factor.
LARGEST_WEIGHT = 5.0
# Added under the root of a sample's loss, so that a perfect sample's slope stays finite.
ROOT_FLOOR = 1e-3
# The constant channels of a UNet that starts as a copy, in standard deviations of a latent: they make its last
# normalisation almost constant.
COPY_BOUND = 3.0
# What predicts the picture itself has its answer after one step; a second one sharpens it, more change nothing.
STEPS_OF_SAMPLE = 2
# Of the samples that stand on the sampler's own path: at its first step, where the colours are found.
FIRST_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[harmonizer]` of a recipe. The defaults are the published training's.

    Widths, layers, groups, heads, null_text and prediction_type are those of a new UNet. With few channels a
    normalisation group absolute colours are normalised away; a UNet that predicts the sample begins as a copy of its
    composite.
    """

    steps: int = recipe.number(100_000, whole(1), "optimiser steps in all")
    batch_size: int = recipe.number(16, whole(1, 4096), "samples a step and process")
    learning_rate: float = recipe.number(1e-5, real(0, 1, above=True), "peak learning rate")
    widths: tuple[int, ...] = recipe.several((32, 64, 128, 128), whole(1, 2048), "channels of the levels", count=4)
    layers: int = recipe.number(1, whole(1, 16), "residual layers a level")
    groups: int = recipe.number(8, whole(1, 1024), "normalisation groups")
    heads: int = recipe.number(8, whole(1, 1024), "attention heads")
    null_text: tuple[int, ...] = recipe.several((8, 64), whole(1, 2048), "tokens and width of the null text", count=2)
    prediction_type: str = recipe.choice("epsilon", sampling.PREDICTIONS, "what a new UNet predicts")
    size: int = recipe.number(512, whole(64, 2048, multiple_of=64), "side of the training pictures, a multiple of 64")
    made: bool = recipe.switch(
        "make composites of shared light from the photos for every sample, instead of reading the listed ones"
    )
    hold_out: tuple[str, ...] = recipe.names("of the photos that composites are made of: subsets to leave out")
    background_weight: float = recipe.number(
        0.0, real(0, 1e6), "what the background's error counts; a UNet from nothing needs some"
    )
    root: bool = recipe.switch(
        "take the root of each sample's loss, so that the few pairs that nobody could guess do not rule it"
    )
    sampler_share: float = recipe.number(
        0.0,
        real(0, 1),
        "share of the samples that are trained where the sampler goes: from the model's own first estimate instead of "
        "the real picture",
    )
    colors_share: float = recipe.number(
        0.8, real(0, 1), "with --colors: share of the samples whose condition it recolours"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", type=Path, help="iHarmony4-shaped data set (iHarmony4 itself, or what make-composites wrote)"
    )
    parser.add_argument(
        "--list", type=Path, default=Path("IHD_train.txt"), help="list in the data set (default %(default)s)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        help="checkpoint to go on from: an SD 1.5 inpainting folder, or an earlier result; the default recipe is then "
        "the published one",
    )
    parser.add_argument("--vae", type=Path, help="checkpoint that brings the VAE where --from has none, or another one")
    parser.add_argument(
        "--colors", type=Path, help="checkpoint with a colour regressor, whose result is stage 1's condition"
    )
    loop.add_arguments(parser, Settings, "size")


def run(args: argparse.Namespace) -> None:
    """Trains and writes OUTPUT/harmonizer.safetensors: UNet, VAE, null text and colour regressor in one file."""
    settings = recipe.settle(Settings, "harmonizer", args, "published" if args.start else "small")
    loop.seeded(settings)
    start = _start(args, settings)
    assert start.unet is not None and start.vae is not None and start.null_text is not None
    unet = checkpoint.build_unet(start.unet).float().train()
    unet.to(memory_format=torch.channels_last)
    vae = checkpoint.build_vae(start.vae).float().requires_grad_(False).to(memory_format=torch.channels_last)
    if (factor := 2 ** (len(vae.config.block_out_channels) - 1)) != geometry.LATENT:
        raise InputError(f"The VAE makes latents of 1/{factor} of a picture's side; stage 1 needs 1/{geometry.LATENT}")
    colors = None
    if start.color_regressor is not None:
        colors = checkpoint.build_color_regressor(start.color_regressor).float().requires_grad_(False)
    pairs: data.Foregrounds | data.Pairs
    if settings.made:
        pairs = data.Foregrounds(args.dataset, args.list, settings.size, settings.hold_out)
    else:
        pairs = data.Pairs(args.dataset, args.list, settings.size)
    null_text = start.null_text.float()
    objective = Objective(
        start.prediction_type, null_text, settings.sampler_share, settings.background_weight, settings.root
    )

    def prepared(batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Composite, real picture and mask, the composite recoloured on some of them."""
        if settings.made:
            with torch.autocast(batch["mask"].device.type, enabled=False):
                pair = made(batch, generator)
            batch = {"composite": pair.composite, "real": pair.real, "mask": pair.mask}
        if colors is not None:
            chosen = (
                torch.rand(len(batch["mask"]), generator=generator, device=generator.device) < settings.colors_share
            )
            better = recolored(colors.to(batch["mask"].device), batch["composite"], batch["mask"])
            batch["composite"] = torch.where(chosen[:, None, None, None], better, batch["composite"])
        return batch

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        vae.to(batch["mask"].device)
        return objective(model, encode(vae, prepared(batch, generator), generator), generator)

    def export(model: torch.nn.Module) -> None:
        start.name, start.unet = args.output.name, checkpoint.part_from(model)
        start.null_text, start.resolution = null_text, settings.size
        if start.prediction_type == "sample":
            start.steps = STEPS_OF_SAMPLE
        checkpoint.write(start, args.output / "harmonizer.safetensors")

    shown = [
        pairs.get(index, np.random.default_rng((17, index))) for index in range(0, len(pairs), max(1, len(pairs) // 8))
    ][:8]

    def sample(model: torch.nn.Module, step: int) -> None:
        from ..pipeline import DiffHarmony

        device = next(model.parameters()).device
        batch = {name: torch.stack([item[name] for item in shown]).to(device) for name in shown[0]}
        batch = prepared(batch, torch.Generator(device).manual_seed(17))
        pipeline = DiffHarmony(
            unet=model, vae=vae, null_text=null_text, prediction_type=start.prediction_type, resolution=settings.size
        )
        latents = pipeline.harmonize_latents(batch["composite"], batch["mask"])
        columns = [batch["composite"], batch["mask"], pipeline.decode(latents), batch["real"]]
        sheets.save([column.cpu() for column in columns], args.output / "samples" / f"{step:07d}.jpg")

    loop.train(settings, args.output, unet, pairs, loss, export=export, sample=sample)


@torch.no_grad()
def recolored(colors: ColorRegressor, composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The composites [B, 3, H, W] in the colours that the regressor finds, their backgrounds untouched."""
    size = (colors.size, colors.size)
    change = colors(geometry.resize(composite, size).clamp(0, 1), geometry.resize(mask, size).clamp(0, 1))
    return torch.lerp(composite, apply_change(composite, change).clamp(0, 1), mask)


class Objective:
    """The loss of stage 1 on latents.

    As published: the MSE of the prediction over the foreground with `foreground_weight`, at timesteps drawn evenly. A
    `sampler_share` of the samples instead stands where the sampler's own run would: x = x̂0 + sigma * noise with x̂0
    the model's first estimate from pure noise. Such an x carries no information about the target, so the best answer is
    the mean of what the picture may have been, not one draw of it.
    """

    def __init__(
        self,
        prediction_type: str,
        null_text: torch.Tensor,
        sampler_share: float = 0.0,
        background_weight: float = 0.0,
        root: bool = False,
    ):
        self.prediction_type, self.null_text = prediction_type, null_text
        self.sampler_share, self.background_weight, self.root = sampler_share, background_weight, root
        _, table = sampling.schedule(1000)
        self.sigmas = table[:-1].flip(0)  # by timestep, 0 to 999

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """batch: "composite", "real" scaled latents [B, 4, h, w], "mask" [B, 1, h, w] in {0, 1}.

        Returns (loss, numbers to log).
        """
        target, mask, device = batch["real"], batch["mask"], batch["real"].device
        condition = torch.cat([mask, batch["composite"]], dim=1)
        text = self.null_text.to(device).expand(len(target), -1, -1)

        def uniform() -> torch.Tensor:
            return torch.rand(len(target), generator=generator, device=device)

        def normal() -> torch.Tensor:
            return torch.randn(target.shape, generator=generator, device=device)

        def predict(
            x: torch.Tensor,
            sigma: torch.Tensor,
            timesteps: torch.Tensor,
            chosen: torch.Tensor | slice = slice(None),
        ) -> torch.Tensor:
            scaled = torch.cat([x / (sigma**2 + 1).sqrt(), condition[chosen]], dim=1)
            return model(scaled, timesteps, encoder_hidden_states=text[chosen]).sample.float()

        own, first = uniform() < self.sampler_share, uniform() < FIRST_SHARE
        timesteps = (uniform() * 1000).floor()
        timesteps = torch.where(own & first, 999.0, timesteps)
        sigma = self.sigma(timesteps)[:, None, None, None]
        first_noise, noise = normal(), normal()
        start = torch.where((own & first)[:, None, None, None], 0.0, target)
        if self.sampler_share and (chosen := own & ~first).any():
            top = torch.full_like(timesteps[chosen], 999.0)
            highest = self.sigma(top)[:, None, None, None]
            with torch.no_grad():
                x = first_noise[chosen] * highest
                start[chosen] = sampling.denoised(x, predict(x, highest, top, chosen), highest, self.prediction_type)
        x = start + sigma * noise
        prediction = predict(x, sigma, timesteps)
        wanted = {
            "epsilon": lambda: (x - target) / sigma,
            "v_prediction": lambda: (x / (sigma**2 + 1) - target) * (sigma**2 + 1).sqrt() / sigma,
            "sample": lambda: target,
        }[self.prediction_type]()
        error = (prediction - wanted).square() * (mask + self.background_weight * (1 - mask))
        each = error.mean(dim=(1, 2, 3)) * foreground_weight(mask)
        if self.root:
            each = (each + ROOT_FLOOR).sqrt()
        with torch.no_grad():
            area = 4 * mask.sum(dim=(1, 2, 3)).clamp(min=1)
            estimate = sampling.denoised(x, prediction, sigma, self.prediction_type)
            after = (mask * (estimate - target)).square().sum(dim=(1, 2, 3)) / area
            before = (mask * (batch["composite"] - target)).square().sum(dim=(1, 2, 3)) / area
        return each.mean(), {"error": after.mean(), "error_of_condition": before.mean()}

    def sigma(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise levels for timesteps in [0, 999], interpolated between whole ones."""
        table = self.sigmas.to(timesteps.device)
        low = timesteps.floor().long().clamp(max=998)
        return torch.lerp(table[low], table[low + 1], timesteps - low)


def foreground_weight(mask: torch.Tensor) -> torch.Tensor:
    """clamp(area / mask area, 1, 5) for each [B, 1, h, w] mask in {0, 1}: [B] (the published training)."""
    area = mask.shape[-1] * mask.shape[-2]
    return (area / mask.sum(dim=(1, 2, 3)).clamp(min=1)).clamp(1, LARGEST_WEIGHT)


@torch.no_grad()
def encode(vae: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Pictures to scaled latents, drawn from their posteriors."""

    def latent(image: torch.Tensor) -> torch.Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(image * 2 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=image.device)
        return (posterior.mean.float() + posterior.std * noise) * vae.config.scaling_factor

    size = tuple(batch["mask"].shape[-2:])
    return {
        "composite": latent(batch["composite"]),
        "real": latent(batch["real"]),
        "mask": geometry.latent_mask(batch["mask"], size),
    }


def _start(args: argparse.Namespace, settings: Settings) -> checkpoint.Checkpoint:
    """What training begins with: UNet, VAE, null text; from --from, --vae, or new."""
    start = checkpoint.read(args.start) if args.start else checkpoint.Checkpoint(name=args.output.name)
    if args.vae:
        start.vae = checkpoint.read(args.vae).vae
    if args.colors:
        start.color_regressor = checkpoint.read(args.colors).color_regressor
        if start.color_regressor is None:
            raise InputError(f"{args.colors} holds no colour regressor; train-color-regressor makes one")
    if start.vae is None:
        raise InputError(
            "No VAE to train with: name a checkpoint that holds one with --vae (train-autoencoder makes one)"
        )
    if args.start and start.unet is None:
        raise InputError(
            f"{args.start} holds no 9-channel UNet; --from wants an inpainting checkpoint, or leave it out to train a "
            "new one"
        )
    if start.unet is None:
        start.unet = _new_unet(settings)
        start.prediction_type = settings.prediction_type
        start.null_text = torch.randn(settings.null_text, generator=torch.Generator().manual_seed(settings.seed))
    if start.null_text is None:
        raise InputError(
            f"{args.start} has no null text and no text encoder to compute it; use a folder with text_encoder/ in it"
        )
    return start


def _new_unet(settings: Settings) -> checkpoint.Part:
    from diffusers.models import UNet2DConditionModel

    if any(width % settings.groups for width in settings.widths):
        raise InputError(
            f"The recipe's groups ({settings.groups}) do not fit its widths {list(settings.widths)}: every width must "
            "be a multiple of them."
        )
    if any(width % settings.heads for width in settings.widths[1:]):
        raise InputError(
            f"The recipe's heads ({settings.heads}) do not fit its widths {list(settings.widths)}: all but the first "
            "must be multiples of them."
        )
    unet = UNet2DConditionModel(
        sample_size=settings.size // 8,
        in_channels=9,
        out_channels=4,
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        attention_head_dim=settings.heads,
        norm_num_groups=settings.groups,
        cross_attention_dim=settings.null_text[1],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    if settings.prediction_type == "sample":
        start_as_copy(unet)
    return checkpoint.part_from(unet)


@torch.no_grad()
def start_as_copy(unet: torch.nn.Module) -> None:
    """Makes a new UNet answer the composite's latents: what predicts the picture need not learn first to pass it
    through.

    SD's UNet has a way straight from its first convolution to its last, by the skip of the last residual block, but a
    normalisation and a SiLU stand in it. SiLU(a) - SiLU(-a) = a, so each latent channel travels twice, once negated;
    and each such pair shares its normalisation group with the constants +-`COPY_BOUND`, whose variance is large beside
    a latent's, so that the group's scale is nearly one number. All other channels begin as in any UNet, those of the
    noise a tenth as strong.

    Raises:
        ValueError: fewer than 4 channels a group, or fewer than 4 groups, in the first level.
    """
    channels, groups = unet.conv_in.out_channels, unet.conv_norm_out.num_groups
    each = channels // groups
    if each < 4 or groups < 4:
        raise InputError(
            f"A UNet that begins as a copy needs 4 groups of 4 channels in the first level, got {groups} of {each}: "
            "raise the recipe's widths or lower its groups"
        )
    last = unet.up_blocks[-1].resnets[-1]
    deep = last.conv_shortcut.in_channels - channels
    unet.conv_in.weight[:, :4] *= 0.1
    unet.conv_out.weight *= 0.1
    unet.conv_out.bias.zero_()
    for block in unet.modules():
        if type(block).__name__ == "ResnetBlock2D":
            block.conv2.weight *= 0.0 if block is last else 0.3
            block.conv2.bias.zero_()
    scale = ((0.8**2 + COPY_BOUND**2) / 2 * 4 / each) ** 0.5  # the group's standard deviation
    for latent in range(4):
        first = latent * each
        group = slice(first, first + each)
        last.conv_shortcut.weight[group], last.conv_shortcut.bias[group] = 0, 0
        unet.conv_out.weight[:, group] = 0
        for place, (sign, constant) in enumerate(((1, 0), (-1, 0), (0, COPY_BOUND), (0, -COPY_BOUND))):
            unet.conv_in.weight[first + place], unet.conv_in.bias[first + place] = 0, constant
            unet.conv_in.weight[first + place, 5 + latent, 1, 1] = sign
            last.conv_shortcut.weight[first + place, deep + first + place] = 1
            unet.conv_out.weight[latent, first + place, 1, 1] = scale * sign
