"""Stage 1, the inpainting UNet that harmonizes in latent space."""

from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checkpoint, geometry, recolor, sampling
from ..errors import InputError
from ..networks.color_regressor import ColorRegressor
from ..numbers import real, whole
from . import data, loop, recipe, state
from .color_regressor import made
from .initialization import start_as_copy
from .objective import OBJECTIVES

# What predicts the picture itself has its answer after one step; a second one sharpens it, more change nothing.
STEPS_OF_SAMPLE = 2
# Share of the samples whose condition a colour regressor recolours, where there is one.
COLORS_SHARE = 0.8
HEADS = 8  # of a new UNet's attention
NULL_TEXT = (8, 64)  # tokens and width of a new UNet's


@dataclass(frozen=True, kw_only=True)
class Settings(recipe.Settings):
    """`[harmonizer]` of a recipe. The defaults are the published training's.

    Widths, layers, groups and prediction_type are those of a new UNet. With few channels a normalisation group absolute
    colours are normalised away; a UNet that predicts the sample begins as a copy of its composite.
    """

    steps: int = recipe.number(100_000, whole(1), "optimiser steps in all")
    batch_size: int = recipe.number(16, whole(1, 4096), "samples a step and process")
    learning_rate: float = recipe.number(1e-5, real(0, 1, above=True), "peak learning rate")
    widths: tuple[int, ...] = recipe.several((32, 64, 128, 128), whole(1, 2048), "channels of the levels", count=4)
    layers: int = recipe.number(1, whole(1, 16), "residual layers a level")
    groups: int = recipe.number(8, whole(1, 1024), "normalisation groups")
    prediction_type: str = recipe.choice("epsilon", sampling.PREDICTIONS, "what a new UNet predicts")
    objective: str = recipe.choice(
        "published", tuple(OBJECTIVES), "the loss: the paper's, or one on the path that the sampler takes"
    )
    size: int = recipe.number(512, whole(64, 2048, multiple_of=64), "side of the training pictures, a multiple of 64")
    made: bool = recipe.switch(
        "make composites of shared light from the photos for every sample, instead of reading the listed ones"
    )
    hold_out: tuple[str, ...] = recipe.names("of the photos that composites are made of: subsets to leave out")


def train(
    dataset: Path,
    list_file: str,
    output: Path,
    settings: Settings,
    *,
    start: Path | None = None,
    vae: Path | None = None,
    colors: Path | None = None,
) -> None:
    """Trains and writes `output`/harmonizer.safetensors: UNet, VAE, null text and colour regressor in one file.

    Args:
        dataset: iHarmony4-shaped, with the list `list_file`.
        start: checkpoint to go on from; None: a new UNet.
        vae: checkpoint that brings the VAE where `start` has none, or another one.
        colors: checkpoint with a colour regressor, whose result is stage 1's condition.

    Raises:
        InputError: inputs or settings that do not fit, or what `loop.train` refuses.
    """
    loop.seeded(settings)
    given = _start(start, vae, colors, output.name, settings)
    assert given.unet is not None and given.vae is not None and given.null_text is not None
    unet = checkpoint.build_unet(given.unet).float().train()
    unet.to(memory_format=torch.channels_last)
    encoder = checkpoint.build_vae(given.vae).float().requires_grad_(False).to(memory_format=torch.channels_last)
    if (factor := 2 ** (len(encoder.config.block_out_channels) - 1)) != geometry.LATENT:
        raise InputError(f"The VAE makes latents of 1/{factor} of a picture's side; stage 1 needs 1/{geometry.LATENT}")
    regressor = None
    if given.color_regressor is not None:
        regressor = checkpoint.build_color_regressor(given.color_regressor).float().requires_grad_(False)
    made_of = {
        "weights of --from": state.digest(unet.state_dict()) if start else "none",
        "VAE": state.digest(encoder.state_dict()),
        "colour regressor": state.digest(regressor.state_dict()) if regressor else "none",
    }
    pairs: data.Foregrounds | data.Pairs
    if settings.made:
        pairs = data.Foregrounds(dataset, list_file, settings.size, settings.hold_out)
    else:
        pairs = data.Pairs(dataset, list_file, settings.size)
    null_text = given.null_text.float()
    objective = OBJECTIVES[settings.objective](given.prediction_type, null_text)

    def prepared(batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Composite, real picture and mask, the composite recoloured on some of them."""
        if settings.made:
            with torch.autocast(batch["mask"].device.type, enabled=False):
                pair = made(batch, generator)
            batch = {"composite": pair.composite, "real": pair.real, "mask": pair.mask}
        if regressor is not None:
            chosen = torch.rand(len(batch["mask"]), generator=generator, device=generator.device) < COLORS_SHARE
            better = recolored(regressor.to(batch["mask"].device), batch["composite"], batch["mask"])
            batch["composite"] = torch.where(chosen[:, None, None, None], better, batch["composite"])
        return batch

    def loss(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        encoder.to(batch["mask"].device)
        return objective(model, encode(encoder, prepared(batch, generator), generator), generator)

    def export(model: torch.nn.Module) -> None:
        given.name, given.unet = output.name, checkpoint.part_from(model)
        given.null_text, given.resolution = null_text, settings.size
        if given.prediction_type == "sample":
            given.steps = STEPS_OF_SAMPLE
        checkpoint.write(given, output / "harmonizer.safetensors")

    fixed = data.shown(pairs, 8)

    def sample(model: torch.nn.Module) -> list[torch.Tensor]:
        from ..pipeline import DiffHarmony

        device = next(model.parameters()).device
        batch = {name: value.to(device) for name, value in fixed.items()}
        batch = prepared(batch, torch.Generator(device).manual_seed(17))
        pipeline = DiffHarmony(
            unet=model,
            vae=encoder,
            null_text=null_text,
            prediction_type=given.prediction_type,
            resolution=settings.size,
        )
        latents = pipeline.harmonize_latents(batch["composite"], batch["mask"])
        return [batch["composite"], batch["mask"], pipeline.decode(latents), batch["real"]]

    loop.train(settings, output, unet, pairs, loss, export=export, sample=sample, made_of=made_of)


def recolored(regressor: ColorRegressor, composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The composites [B, 3, H, W] as stage 1 will get them: in full precision, as `recolor.harmonize` makes them."""
    with torch.autocast(composite.device.type, enabled=False):
        return recolor.harmonize(regressor, composite, mask)[0]


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


def _start(
    start: Path | None, vae: Path | None, colors: Path | None, name: str, settings: Settings
) -> checkpoint.Checkpoint:
    """What training begins with: UNet, VAE, null text; from the files that are given, or new."""
    found = checkpoint.read(start) if start else checkpoint.Checkpoint(name=name)
    if vae:
        found.vae = checkpoint.read(vae).vae
    if colors:
        found.color_regressor = checkpoint.read(colors).color_regressor
        if found.color_regressor is None:
            raise InputError(f"{colors} holds no colour regressor; train-color-regressor makes one")
    if found.vae is None:
        raise InputError(
            "No VAE to train with: name a checkpoint that holds one with --vae (train-autoencoder makes one)"
        )
    if start and found.unet is None:
        raise InputError(
            f"{start} holds no 9-channel UNet; give --from an inpainting checkpoint, or leave it out for a new UNet"
        )
    if found.unet is None:
        found.unet = _new_unet(settings)
        found.prediction_type = settings.prediction_type
        found.null_text = torch.randn(NULL_TEXT, generator=torch.Generator().manual_seed(settings.seed))
    if found.null_text is None:
        raise InputError(
            f"{start} has no null text and no text encoder to compute it; use a folder with text_encoder/ in it"
        )
    return found


def _new_unet(settings: Settings) -> checkpoint.Part:
    from diffusers.models import UNet2DConditionModel

    if any(width % settings.groups for width in settings.widths):
        raise InputError(
            f"The recipe's groups ({settings.groups}) do not fit its widths {list(settings.widths)}: every width must "
            "be a multiple of them."
        )
    if any(width % HEADS for width in settings.widths[1:]):
        raise InputError(
            f"{HEADS} attention heads do not fit the recipe's widths {list(settings.widths)}: all but the first must "
            f"be multiples of {HEADS}."
        )
    unet = UNet2DConditionModel(
        sample_size=settings.size // 8,
        in_channels=9,
        out_channels=4,
        block_out_channels=settings.widths,
        layers_per_block=settings.layers,
        attention_head_dim=HEADS,
        norm_num_groups=settings.groups,
        cross_attention_dim=NULL_TEXT[1],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    if settings.prediction_type == "sample":
        start_as_copy(unet)
    return checkpoint.part_from(unet)
