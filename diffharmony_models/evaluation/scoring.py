"""Scores harmonized pictures against the real ones, as the paper does on iHarmony4.

Everything is scored at 256×256 (bilinear, antialiased), and on demand at the pictures' own size as well; rounded to 8
bits, and with the result's foreground put on the real background first.
"""

from dataclasses import dataclass

import torch

from .. import geometry
from ..errors import InputError
from ..files import images
from ..files.iharmony import Triple
from . import metrics
from .report import Score

SIZE = (256, 256)


@dataclass(frozen=True)
class Pair:
    """One pair as it is scored. Images B3HW in [0, 1] in steps of 1/255, masks B1HW in {0, 1}.

    share: foreground pixels ÷ all pixels, at 256×256. size: "256", or "full" for the pictures' own.
    """

    entry: str
    triple: Triple
    composite: torch.Tensor
    mask: torch.Tensor
    real: torch.Tensor
    share: float
    size: str = "256"


def quantized(image: torch.Tensor) -> torch.Tensor:
    """An image in [0, 1] as if it had been saved with 8 bits and read again. InputError for NaN and infinite values."""
    if not torch.isfinite(image).all():
        raise InputError("the result holds NaN or infinite values; try another checkpoint")
    return image.detach().float().cpu().mul(255).round().clamp(0, 255) / 255


def prepared(image: torch.Tensor) -> torch.Tensor:
    """B3HW in [0, 1] of any size to 256×256 in steps of 1/255."""
    return quantized(geometry.resize(image.float(), SIZE))


def load(entry: str, triple: Triple, native_size: bool = False) -> list[Pair]:
    """The pair at 256×256 and, with `native_size`, as it is in its files. InputError for files that make no pair."""
    composite, real = (images.read_image(path).pixels for path in (triple.composite, triple.real))
    mask = images.read_mask(triple.mask)
    for path, picture in ((triple.mask, mask), (triple.real, real)):
        if picture.shape[-2:] != composite.shape[-2:]:
            raise InputError(
                f"{path} is {_size(picture)} but {triple.composite} is {_size(composite)}; composite, mask and"
                " real picture must be of one size"
            )
    small = geometry.binarize(geometry.resize(mask, SIZE))
    if geometry.is_empty(small).any():
        raise InputError(f"{triple.mask} has no foreground at {SIZE[1]}x{SIZE[0]}")
    share = small.mean().item()
    loaded = [Pair(entry, triple, prepared(composite), small, prepared(real), share)]
    if native_size:
        loaded.append(
            Pair(entry, triple, quantized(composite), geometry.binarize(mask), quantized(real), share, "full")
        )
    return loaded


def score(pair: Pair, result: torch.Tensor, method: str) -> tuple[Score, torch.Tensor]:
    """Measures one result against the real picture.

    As in the published evaluation, what stands outside the mask is replaced by the real picture first: JPEG traces in
    the composite's background are not the method's.

    Args:
        result: 1 3 H W in [0, 1], of any size at 256×256, of the pair's at full size.

    Returns:
        The score, and the picture it was measured on (1 3 H W of the pair's size, in [0, 1]).

    Raises:
        InputError: a result of another size at full size, or with values that are not finite.
    """
    size = pair.composite.shape[-2:]
    if pair.size == "full" and result.shape[-2:] != size:
        raise InputError(
            f"the result is {_size(result)}, the composite {_size(pair.composite)}; leave out --native-size, or give"
            " results of the composites' sizes"
        )
    picture = quantized(geometry.resize(quantized(result), size))
    picture = geometry.paste(picture, pair.real, pair.mask)
    image, real = (picture * 255).round(), (pair.real * 255).round()
    # Channel by channel, for at full size SSIM's planes would fill the memory.
    similarities = [metrics.ssim_map(image[:, [channel]], real[:, [channel]]) for channel in range(3)]
    values = (
        metrics.psnr(image, real),
        metrics.mse(image, real),
        metrics.fmse(image, real, pair.mask),
        torch.stack([metrics.mean_ssim(each) for each in similarities]).mean(),
        torch.stack([metrics.foreground_ssim(each, pair.mask) for each in similarities]).mean(),
    )
    numbers = (value.item() for value in values)
    return Score(pair.entry, pair.triple.subset, pair.share, method, pair.size, *numbers), picture


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
