"""What comes in over the wires: checked, refused in words, turned to the engine's layout.

The host's IMAGE is [B, H, W, C] in [0, 1], its MASK [B, H, W] in [0, 1]; the engine's images are [B, 3, H, W], its
masks [B, 1, H, W]. Nothing here changes its arguments.
"""

import math

import comfy.model_patcher
import comfy.sd
import torch

from ..diffharmony_models import geometry
from ..diffharmony_models.errors import InputError
from .host import inspection

LATENT_CHANNELS = 4
OVERSHOOT = 0.5  # by which a scaling filter may leave [0, 1]; what goes beyond is no such picture
NO_MASK = (64, 64)  # (height, width) of the empty mask that LoadImage makes up for a picture without transparency


def image(value: torch.Tensor | None, name: str, node: str) -> torch.Tensor:
    """An IMAGE as [B, 3, H, W] float32: grey as three equal channels, an alpha channel left out.

    InputError for what is no picture.
    """
    if value is None:
        raise InputError(f"{node} got no {name}: the node before it gave None. Wire an IMAGE, as LoadImage gives one.")
    if not torch.is_tensor(value) or value.ndim != 4 or value.shape[-1] not in (1, 3, 4):
        found = list(value.shape) if torch.is_tensor(value) else type(value).__name__
        raise InputError(
            f"{node}: {name} must be an IMAGE [batch, height, width, 3], not {found}. Wire an IMAGE, as LoadImage "
            "gives one."
        )
    if not value.numel():
        raise InputError(f"{node}: {name} is an empty batch, {list(value.shape)}. Give at least one picture.")
    value = value[..., :3].float()
    _check_values(value, f"{node}: {name}")
    return value.expand(-1, -1, -1, 3).movedim(-1, 1)  # BHWC -> BCHW


def mask(value: torch.Tensor | None, composite: torch.Tensor, node: str) -> torch.Tensor:
    """A MASK as [B, 1, H, W] of the composite's size and batch; one mask goes with every picture.

    composite: [B, 3, H, W]. A mask of the composite's proportions is scaled to it, one level of 8 bits counts as 0;
    InputError for any other, and for the one that LoadImage makes up.
    """
    if value is None:
        raise InputError(f"{node} got no mask: the node before it gave None. Wire a MASK, 1 where the foreground is.")
    if torch.is_tensor(value) and value.ndim == 2:
        value = value[None]
    if torch.is_tensor(value) and value.ndim == 4 and value.shape[1] == 1:
        value = value[:, 0]
    if not torch.is_tensor(value) or value.ndim != 3:
        found = list(value.shape) if torch.is_tensor(value) else type(value).__name__
        raise InputError(
            f"{node}: mask must be a MASK [batch, height, width], not {found}. ImageToMask or LoadImageMask make one "
            "of a picture."
        )
    if not value.numel():
        raise InputError(f"{node}: mask is an empty batch, {list(value.shape)}. Give at least one mask.")
    value = value.to(composite.device, torch.float32)[:, None]
    _check_values(value, f"{node}: mask")
    value = geometry.without_faint(value.clamp(0, 1))
    if value.shape[-2:] != composite.shape[-2:]:
        if tuple(value.shape[-2:]) == NO_MASK and not value.any():
            raise InputError(
                f"{node}: no mask is drawn. This is the empty 64x64 mask that Load Image gives for a picture without "
                "transparency. Right-click Load Image, choose Open in Mask Editor, paint over the foreground and save; "
                "or load a black-and-white mask with Load Image (as Mask), channel red."
            )
        if not geometry.proportional(value.shape[-2:], composite.shape[-2:]):
            hint = "Resize or crop the one as you did the other."
            if geometry.proportional(value.shape[-2:], composite.shape[:-3:-1]):
                hint = (
                    "The one lies on its side: turn it with ImageRotate. A phone's photo may say so only in its EXIF "
                    "orientation."
                )
            raise InputError(
                f"{node}: composite and mask must have the same size or at least the same proportions. "
                f"{size(composite)} != {size(value)}. {hint}"
            )
        value = geometry.resize(value, composite.shape[-2:])
    if value.shape[0] not in (1, composite.shape[0]):
        raise InputError(
            f"{node}: {composite.shape[0]} composites came with {value.shape[0]} masks. Give one mask for all, or one "
            "for each."
        )
    return geometry.match(composite, value)[1]


def harmonized(
    value: torch.Tensor | None, composite: torch.Tensor, mask: torch.Tensor, node: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The harmonized IMAGE of these composites as [B, 3, h, w], at whatever size it was decoded, with the composite and
    the mask of each; several harmonized pictures go with one composite.

    InputError where batches differ, and where its proportions are neither the composite's (sides rounded to 64 pixels
    count as such) nor those of a square, to which the paper squashes.
    """
    value = image(value, "harmonized", node)
    count = value.shape[0]
    if composite.shape[0] not in (1, count):
        raise InputError(
            f"{node}: {count} harmonized images came with {composite.shape[0]} composites. Give one for each "
            "composite, or one composite for all."
        )
    same_view(
        value.shape[-2:],
        composite,
        f"{node}: the harmonized image",
        "Wire the composite that was harmonized, uncropped.",
    )
    return value.to(composite.device), composite.expand(count, -1, -1, -1), mask.expand(count, -1, -1, -1)


def latent(value: dict | None, name: str, node: str) -> torch.Tensor:
    """A LATENT's samples, [B, 4, h, w]. InputError for those of another family."""
    if value is None:
        raise InputError(f"{node} got no {name}: the node before it gave None. Wire a LATENT.")
    samples = value["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim != 4 or samples.shape[1] != LATENT_CHANNELS:
        found = "nested" if getattr(samples, "is_nested", False) else str(list(samples.shape))
        raise InputError(
            f"{node}: {name} must be a LATENT of the SD 1.5 family, [batch, {LATENT_CHANNELS}, height, width], not "
            f"{found}. Decode the other model's LATENT with its own VAE, and wire the IMAGE."
        )
    return samples


def composite_latent(value: dict, composite: torch.Tensor, node: str) -> torch.Tensor:
    """The samples of the composite as LATENT, one for each composite. InputError where they do not belong together."""
    samples = latent(value, "latent", node)
    if samples.shape[0] not in (1, composite.shape[0]):
        raise InputError(
            f"{node}: {composite.shape[0]} composites came with {samples.shape[0]} latents. Give one for each."
        )
    advice = "Wire the LATENT that the composite was decoded from, or none."
    same_view(decoded_size(samples), composite, f"{node}: the latent", advice)
    return samples.float().expand(composite.shape[0], -1, -1, -1)


def inference_size(composite: torch.Tensor, resolution: int, shape: str) -> tuple[int, int]:
    """(height, width) at which stage 1 works; as `geometry.inference_size`. InputError for what is too long for it."""
    height, width = geometry.inference_size(composite.shape[-2], composite.shape[-1], resolution, shape)
    if height * width > 4 * resolution**2:
        raise InputError(
            f"The composite is {size(composite)}, too long and thin for resolution {resolution}. Crop it around the "
            'foreground, or choose shape "square".'
        )
    return height, width


def same_view(found: tuple[int, int], composite: torch.Tensor, what: str, advice: str) -> None:
    """InputError unless a picture of size `found` can show the whole composite: its proportions, or a square."""
    height, width = found
    # Some scale must lead from the composite to this size, each side rounded by itself, and up to SIDE at least.
    slack = geometry.SIDE / 2 + 1
    sides = list(zip(found, composite.shape[-2:]))
    least = max((side - slack) / full if side > geometry.SIDE else 0 for side, full in sides)
    near = least <= min((side + slack) / full for side, full in sides)
    if height != width and not near:
        raise InputError(
            f"{what} is {width}x{height}, but the composite is {size(composite)}: other proportions. {advice}"
        )


def finite(value: torch.Tensor, what: str, node: str) -> None:
    """InputError where a network's result holds NaN or infinity."""
    if not torch.isfinite(value).all():
        raise InputError(
            f"{node}: {what} holds NaN. What came in does already, the weights are broken, or their precision is too "
            "narrow: choose weight_dtype fp32 in LoadDiffHarmony, and start ComfyUI with --fp32-vae where that is not "
            "enough."
        )


def model(value: comfy.model_patcher.ModelPatcher | None, node: str) -> None:
    """InputError unless this MODEL takes [noisy latent 4, mask 1, composite latent 4] as SD 1.5 inpainting does."""
    if value is None:
        raise InputError(
            f"{node} got no MODEL: the checkpoint in LoadDiffHarmony has no UNet. Choose one that has (the published "
            "base/, a one-file checkpoint, or the bundled one)."
        )
    if not inspection.is_harmonizer(value):
        raise InputError(
            f"{node} got a MODEL of the kind {inspection.kind_of(value)} with {inspection.input_channels(value)} input "
            "channels; it needs DiffHarmony's: SD 1.5's inpainting network with 9 (noisy latent 4, mask 1, composite "
            "latent 4). Wire the MODEL of LoadDiffHarmony."
        )


def vae(value: comfy.sd.VAE | None, node: str) -> None:
    """InputError unless this VAE has 4 latent channels at 1/8 of the size."""
    if value is None:
        raise InputError(
            f"{node} got no VAE: the checkpoint in LoadDiffHarmony has none. Wire SD 1.5's from VAELoader: "
            "vae-ft-mse-840000-ema-pruned.safetensors of huggingface.co/stabilityai/sd-vae-ft-mse-original, in "
            "models/vae."
        )
    if not inspection.is_sd15_vae(value):
        channels, factor = inspection.latent_layout(value)
        raise InputError(
            f"{node} got a VAE with {channels} latent channels at 1/{factor} of the size; it needs one of the SD 1.5 "
            "family, with 4 at 1/8. Wire the VAE of LoadDiffHarmony, or sd-vae-ft-mse from VAELoader."
        )


def text(null_text: list | None, node: str, model: comfy.model_patcher.ModelPatcher | None = None) -> None:
    """InputError unless this CONDITIONING has the width that the MODEL takes."""
    if not null_text:
        raise InputError(
            f"{node} got no null text: the checkpoint in LoadDiffHarmony has none. Wire an SD 1.5 CLIP into "
            "LoadDiffHarmony's clip, from CheckpointLoaderSimple with any SD 1.5 checkpoint, or from CLIPLoader with "
            "clip_l.safetensors."
        )
    width = null_text[0][0].shape[-1]
    wanted = inspection.text_width(model) if model is not None else width
    if width != wanted:
        raise InputError(
            f"{node} got CONDITIONING of width {width}; the MODEL takes {wanted}. Wire the null_text of the same "
            "LoadDiffHarmony."
        )


def refiner(value: comfy.model_patcher.ModelPatcher | None, node: str) -> None:
    """InputError where the checkpoint has no refiner."""
    if value is None:
        raise InputError(
            f"{node} got no refiner: the checkpoint in LoadDiffHarmony has none. End in TransferToFullResolution, "
            "which needs none, or put the published refinement/ beside base/ and load that."
        )


def to_host(picture: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] to an IMAGE."""
    return picture.movedim(1, -1)  # BCHW -> BHWC


def decoded_size(samples: torch.Tensor) -> tuple[int, int]:
    """(height, width) in pixels of what latents [B, 4, h, w] decode to."""
    return samples.shape[-2] * geometry.LATENT, samples.shape[-1] * geometry.LATENT


def size(picture: torch.Tensor) -> str:
    return f"{picture.shape[-1]}x{picture.shape[-2]}"


def _check_values(value: torch.Tensor, what: str) -> None:
    """InputError for NaN, infinity, and values that cannot be meant as [0, 1]."""
    low, high = (float(end) for end in value.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"{what} holds NaN or infinity; expected values in [0, 1]. The node before it gives them: half precision "
            "may be too narrow for its model."
        )
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise InputError(
            f"{what} has values from {low:g} to {high:g}; expected [0, 1]. Divide what counts to 255 by 255; tone-map "
            "what is HDR."
        )
