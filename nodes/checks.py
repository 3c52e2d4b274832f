"""What comes in over the wires: turned to the engine's layout, checked, refused in words.

The host's IMAGE is [B, H, W, C] in [0, 1], its MASK [B, H, W] in [0, 1]; the engine's images are [B, 3, H, W], its
masks [B, 1, H, W]. Nothing here changes its arguments.
"""

import math

import torch

from ..diffharmony_models import geometry

LATENT_CHANNELS = 4
OVERSHOOT = 0.5  # by which a scaling filter may leave [0, 1]; what goes beyond is no such picture
SPECK = 16  # pixels; a foreground of fewer is a slip of the brush
FULL = 0.999  # of the picture: a mask that covers more leaves no background
NO_MASK = (64, 64)  # (height, width) of the empty mask that LoadImage makes up for a picture without transparency


def image(value: torch.Tensor | None, name: str, node: str) -> torch.Tensor:
    """An IMAGE as [B, 3, H, W] float32: grey as three equal channels, an alpha channel left out.

    ValueError for what is no picture.
    """
    if value is None:
        raise ValueError(f"{node} got no {name}: the node before it gave None. Wire an IMAGE, as LoadImage gives one.")
    if not torch.is_tensor(value) or value.ndim != 4 or value.shape[-1] not in (1, 3, 4):
        found = list(value.shape) if torch.is_tensor(value) else type(value).__name__
        raise ValueError(
            f"{node}: {name} must be an IMAGE [batch, height, width, 3], not {found}. Wire an IMAGE, as LoadImage "
            "gives one."
        )
    if not value.numel():
        raise ValueError(f"{node}: {name} is an empty batch, {list(value.shape)}. Give at least one picture.")
    value = value[..., :3].float()
    _check_values(value, f"{node}: {name}")
    return value.expand(-1, -1, -1, 3).movedim(-1, 1)  # BHWC -> BCHW


def mask(value: torch.Tensor | None, composite: torch.Tensor, node: str) -> torch.Tensor:
    """A MASK as [B, 1, H, W] of the composite's size and batch; one mask goes with every picture.

    composite: [B, 3, H, W]. A mask of the composite's proportions is scaled to it, one level of 8 bits counts as 0;
    ValueError for any other, and for the one that LoadImage makes up.
    """
    if value is None:
        raise ValueError(f"{node} got no mask: the node before it gave None. Wire a MASK, 1 where the foreground is.")
    if torch.is_tensor(value) and value.ndim == 2:
        value = value[None]
    if torch.is_tensor(value) and value.ndim == 4 and value.shape[1] == 1:
        value = value[:, 0]
    if not torch.is_tensor(value) or value.ndim != 3:
        found = list(value.shape) if torch.is_tensor(value) else type(value).__name__
        raise ValueError(
            f"{node}: mask must be a MASK [batch, height, width], not {found}. ImageToMask or LoadImageMask make one "
            "of a picture."
        )
    if not value.numel():
        raise ValueError(f"{node}: mask is an empty batch, {list(value.shape)}. Give at least one mask.")
    value = value.to(composite.device, torch.float32)[:, None]
    _check_values(value, f"{node}: mask")
    value = value.clamp(0, 1)
    value = torch.where(value < geometry.FAINT, 0, value)
    if value.shape[-2:] != composite.shape[-2:]:
        if tuple(value.shape[-2:]) == NO_MASK and not value.any():
            raise ValueError(
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
            raise ValueError(
                f"{node}: composite and mask must have the same size or at least the same proportions. "
                f"{size(composite)} != {size(value)}. {hint}"
            )
        value = geometry.resize(value, composite.shape[-2:])
    if value.shape[0] not in (1, composite.shape[0]):
        raise ValueError(
            f"{node}: {composite.shape[0]} composites came with {value.shape[0]} masks. Give one mask for all, or one "
            "for each."
        )
    return geometry.match(composite, value)[1]


def doubts(mask: torch.Tensor) -> list[str]:
    """What is probably wrong with a mask [B, 1, H, W] that can be used as it is: it is empty, a speck, white all over,
    or inverted. An empty mask beside others that are not is a frame without the foreground, and right."""
    area = (mask >= 0.5).flatten(1).sum(1)
    if not area.any():
        return [
            "The mask is empty: nothing to harmonize, the composite is given back. For a black-and-white mask, "
            "Load Image (as Mask) must read channel red, not alpha."
        ]
    if area.max() < SPECK:
        return [
            f"The foreground in the mask is {int(area.max())} of {mask[0].numel()} pixels: too small to be seen. "
            "Paint over the whole of what was pasted in."
        ]
    # A foreground hardly ever holds most of a picture and its frame too, its background nearly always.
    frame = torch.cat((mask[..., 0, :], mask[..., -1, :], mask[..., :, 0], mask[..., :, -1]), -1)
    share = mask.mean((1, 2, 3))
    covered = share[(frame.mean((1, 2)) >= 0.8) & (share >= 0.5)]
    if not len(covered):
        return []
    if covered.max() >= FULL:
        return [
            "The mask is white all over: all of the picture is changed, and no background is left whose light it could "
            "take. White belongs on what was pasted in alone."
        ]
    return [
        f"The mask covers {100 * covered.max():.0f} % of the picture and its frame. What it covers is changed; "
        "if that is the background, put Invert Mask before it. "
        "The MASK of Load Image is 1 where a picture is transparent."
    ]


def rendered(value: torch.Tensor | None, composite: torch.Tensor, node: str) -> torch.Tensor:
    """The harmonized IMAGE of these composites as [B, 3, h, w], at whatever size it was decoded.

    ValueError where batches differ, and where its proportions are neither the composite's (sides rounded to 64 pixels
    count as such) nor those of a square, to which the paper squashes.
    """
    value = image(value, "harmonized", node)
    if value.shape[0] != composite.shape[0]:
        raise ValueError(
            f"{node}: {value.shape[0]} harmonized images came with {composite.shape[0]} composites. Give one for each "
            "composite."
        )
    same_view(
        value.shape[-2:],
        composite,
        f"{node}: the harmonized image",
        "Wire the composite that was harmonized, uncropped.",
    )
    return value.to(composite.device)


def latent(value: dict | None, name: str, node: str) -> torch.Tensor:
    """A LATENT's samples, [B, 4, h, w]. ValueError for those of another family."""
    if value is None:
        raise ValueError(f"{node} got no {name}: the node before it gave None. Wire a LATENT.")
    samples = value["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim != 4 or samples.shape[1] != LATENT_CHANNELS:
        found = "nested" if getattr(samples, "is_nested", False) else str(list(samples.shape))
        raise ValueError(
            f"{node}: {name} must be a LATENT of the SD 1.5 family, [batch, {LATENT_CHANNELS}, height, width], not "
            f"{found}. Decode the other model's LATENT with its own VAE, and wire the IMAGE."
        )
    return samples


def same_view(found: tuple[int, int], composite: torch.Tensor, what: str, advice: str) -> None:
    """ValueError unless a picture of size `found` can show the whole composite: its proportions, or a square."""
    height, width = found
    # Some scale must lead from the composite to this size, each side rounded by itself, and up to SIDE at least.
    slack = geometry.SIDE / 2 + 1
    sides = list(zip(found, composite.shape[-2:]))
    least = max((side - slack) / full if side > geometry.SIDE else 0 for side, full in sides)
    near = least <= min((side + slack) / full for side, full in sides)
    if height != width and not near:
        raise ValueError(
            f"{what} is {width}x{height}, but the composite is {size(composite)}: other proportions. {advice}"
        )


def to_host(picture: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] to an IMAGE."""
    return picture.movedim(1, -1)  # BCHW -> BHWC


def size(picture: torch.Tensor) -> str:
    return f"{picture.shape[-1]}x{picture.shape[-2]}"


def _check_values(value: torch.Tensor, what: str) -> None:
    """ValueError for NaN, infinity, and values that cannot be meant as [0, 1]."""
    low, high = (float(end) for end in value.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{what} holds NaN or infinity; expected values in [0, 1]. The node before it gives them: half precision "
            "may be too narrow for its model."
        )
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(
            f"{what} has values from {low:g} to {high:g}; expected [0, 1]. Divide what counts to 255 by 255; tone-map "
            "what is HDR."
        )
