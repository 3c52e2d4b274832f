"""The one place that resizes, binarises, pads, crops and pastes back.

Images are float tensors [B, 3, H, W] in [0, 1]; masks are float tensors [B, 1, H, W] in [0, 1], 1 = foreground.
No function changes its arguments.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .errors import InputError

SIDE = 64  # eight pixels a latent, times the UNet's three halvings
LATENT = 8
FAINT = 1.5 / 255
"""Less than this in a mask is nothing: some readers read an opaque alpha of lossy files one level too low."""


def inference_size(height: int, width: int, resolution: int, shape: str = "keep") -> tuple[int, int]:
    """The size (height, width) in pixels at which stage 1 works.

    height, width: of the composite, pixels. resolution: side in pixels of the square whose area is aimed at.
    shape: "keep" keeps the proportions (area about resolution², sides multiples of 64, at least 64); "square" squashes
    to resolution x resolution, as the paper does.
    Raises ValueError for sizes that cannot be and for an unknown shape.
    """
    if height < 1 or width < 1:
        raise InputError(f"An image of {width}x{height} pixels has no content; give one of at least 1x1.")
    if resolution < SIDE:
        raise InputError(f"Inference resolution {resolution} is too small; give at least {SIDE}.")
    if shape == "square":
        if resolution % SIDE:
            nearest = max(SIDE, round(resolution / SIDE) * SIDE)
            raise InputError(f"A square resolution must be a multiple of {SIDE}, not {resolution}; try {nearest}.")
        return resolution, resolution
    if shape == "keep":
        scale = resolution / math.sqrt(height * width)
        high, wide = (max(SIDE, round(side * scale / SIDE) * SIDE) for side in (height, width))
        return high, wide
    raise InputError(f'Unknown shape "{shape}"; expected "keep" or "square".')


def resize(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """[B, C, H, W] to [B, C, *size], bilinear, antialiased when shrinking. The same size comes back untouched."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if image.shape[-1] == 1 == size[1]:  # torch's antialiased resizing gives wrong values where the width stays 1
        return resize(image.mT, tuple(size)[::-1]).mT
    resized = F.interpolate(image.float(), size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return resized.to(image.dtype)


def binarize(mask: torch.Tensor) -> torch.Tensor:
    """Mask in [0, 1] to {0, 1}: 1 where it is >= 0.5. Shape and dtype stay."""
    return (mask >= 0.5).to(mask.dtype)


def latent_mask(mask: torch.Tensor, size: tuple[int, int], factor: int = LATENT) -> torch.Tensor:
    """The mask as the UNet sees it: binarised at the inference resolution, then nearest down to the latent's size.

    mask: [B, 1, H, W] in [0, 1]. size: inference (height, width), multiples of `factor` (pixels a latent).
    Returns [B, 1, size[0] / factor, size[1] / factor] in {0, 1}.
    """
    height, width = size
    if height % factor or width % factor:
        raise InputError(f"Inference size {width}x{height} must be a multiple of {factor}; see `inference_size`.")
    return F.interpolate(binarize(resize(mask, size)), size=(height // factor, width // factor), mode="nearest")


def without_faint(mask: torch.Tensor) -> torch.Tensor:
    """A mask in [0, 1] with 0 for what is less than `FAINT`."""
    return torch.where(mask < FAINT, 0, mask)


def is_empty(mask: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W] to bool [B]: True where no pixel of the mask reaches 0.5, that is, where there is no foreground."""
    return ~(mask >= 0.5).flatten(1).any(dim=1)


def match(composite: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks that a mask fits its composite and gives both with the same batch.

    composite: [B, 3, H, W]. mask: [B, 1, H, W], or [1, 1, H, W], which then goes with every image.
    Raises ValueError when shapes, sizes or batches differ.
    """
    for name, tensor, channels in (("composite", composite, 3), ("mask", mask, 1)):
        if tensor.ndim != 4 or tensor.shape[1] != channels or not tensor.is_floating_point():
            raise InputError(
                f"The {name} must be a float tensor [batch, {channels}, height, width] in [0, 1], "
                f"not {tensor.dtype} {list(tensor.shape)}."
            )
    if composite.shape[-2:] != mask.shape[-2:]:
        raise InputError(
            f"Image and mask must be the same size. {_size(composite)} != {_size(mask)}. "
            "Resize the mask to the image, or give the mask that belongs to it."
        )
    if mask.shape[0] == 1:
        mask = mask.expand(composite.shape[0], -1, -1, -1)
    if composite.shape[0] != mask.shape[0]:
        raise InputError(
            f"{composite.shape[0]} images came with {mask.shape[0]} masks; "
            "give one mask for all, or one for each image."
        )
    return composite, mask


def feathered(mask: torch.Tensor, feather: int) -> torch.Tensor:
    """The mask with its edge softened inwards: nothing outside it ever becomes part of it.

    The mean of the mask and its `feather` successive greyscale erosions (3x3): on a hard edge a linear ramp that
    reaches 1 `feather` pixels inside. Where the frame cuts the foreground there is no edge, hence no ramp.
    mask: [B, 1, H, W] in [0, 1]. feather: pixels, >= 0.
    """
    if feather < 0:
        raise InputError(f"Feather must be 0 or more pixels, not {feather}.")
    if feather == 0:
        return mask
    eroded, total = mask.clone(), mask.clone()
    spare = torch.empty_like(mask)  # new memory for every step would take most of the time
    for _ in range(int(feather)):
        _erode(eroded, spare, -2)
        _erode(eroded, spare, -1)
        total += eroded
    return total.div_(int(feather) + 1)


def _erode(mask: torch.Tensor, spare: torch.Tensor, dim: int) -> None:
    """Replaces each value by the least of itself and its two neighbours along `dim`."""
    last = mask.shape[dim] - 1
    if last:
        lesser = spare.narrow(dim, 0, last)
        torch.minimum(mask.narrow(dim, 0, last), mask.narrow(dim, 1, last), out=lesser)
        mask.narrow(dim, 0, 1).copy_(lesser.narrow(dim, 0, 1))
        mask.narrow(dim, last, 1).copy_(lesser.narrow(dim, last - 1, 1))
        torch.minimum(
            lesser.narrow(dim, 0, last - 1), lesser.narrow(dim, 1, last - 1), out=mask.narrow(dim, 1, last - 1)
        )


def paste(harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, feather: int = 0) -> torch.Tensor:
    """Puts the background back: harmonized inside the mask, the composite's own pixels, bit for bit, where mask == 0.

    harmonized, composite: [B, 3, H, W]. mask: [B, 1, H, W] or [1, 1, H, W], taken as a matte: values between 0 and 1
    blend. feather: pixels by which a hard edge is softened inwards.
    Raises ValueError when sizes or batches differ.
    """
    composite, mask = match(composite, mask)
    if harmonized.shape != composite.shape:
        raise InputError(
            "The harmonized image must have the composite's shape. "
            f"{list(harmonized.shape)} != {list(composite.shape)}. Resize it first."
        )
    mask = mask.to(composite.dtype)
    matte = feathered(mask, feather)
    blended = torch.lerp(composite, harmonized.to(composite.dtype), matte)
    # Not left to lerp alone: 0 * NaN outside the mask would be NaN.
    return torch.where(matte == 0, composite, torch.where(matte == 1, harmonized.to(composite.dtype), blended))


def proportional(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes (height, width) differ by a scale alone, up to a pixel of rounding."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))


def pad(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeats the last row and column until both sides are multiples of `multiple`. Undo with `crop`."""
    height, width = image.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    if not right and not bottom:
        return image
    return F.pad(image, (0, right, 0, bottom), mode="replicate")


def crop(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The top left `size` (height, width) of an image: undoes `pad`."""
    return image[..., : size[0], : size[1]]


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
