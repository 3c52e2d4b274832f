"""Harmonizing by colours alone: a `ColorRegressor` says how the foreground's colours change, the original's own pixels
are changed so.

Images are float32 [B, 3, H, W] in [0, 1], masks [B, 1, H, W] in [0, 1], 1 = foreground. No detail can be lost and
nothing is drawn at random; where the mask is 0 the picture comes out as it went in, to the bit.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import geometry
from .errors import InputError
from .luma import LUMA
from .networks.color_regressor import ColorChange, ColorRegressor, monomials

FRAMES = ("each alone", "one change for all", "smoothed")
STRIP = 1 << 18  # pixels that are changed at once: what they need stays in the processor's cache
SMOOTHING = 4.0  # frames, the deviation of the Gaussian that smooths changes over time


@dataclass(frozen=True)
class Amounts:
    """How much of a change is made: 0 leaves the composite as it is, 1 makes what was predicted, above 1 goes on.

    strength: of the whole. light: of its part along the greys. color: of the rest. local: of what varies over the
    foreground.
    """

    strength: float = 1.0
    light: float = 1.0
    color: float = 1.0
    local: float = 1.0


def predict(
    regressor: ColorRegressor, composite: torch.Tensor, mask: torch.Tensor, frames: str = "each alone"
) -> ColorChange:
    """The change of each picture of a batch.

    frames: one of `FRAMES`; the pictures of a batch are then taken for the frames of one clip, and their changes for
    one or for steady ones. Raises InputError where sizes or batches differ, and for values that are not finite.
    """
    composite, mask = geometry.match(composite, mask)
    parameter = next(regressor.parameters())
    size = (regressor.size, regressor.size)
    curves, fields = [], []
    with torch.inference_mode():
        for image, inside in zip(composite.split(1), mask.split(1), strict=True):
            small = geometry.resize(image.float(), size).to(parameter.device, parameter.dtype)
            small_mask = geometry.resize(inside.float(), size).to(parameter.device, parameter.dtype)
            change = regressor(small.clamp(0, 1), small_mask.clamp(0, 1))
            curves.append(change.curve.float().cpu())
            fields.append(change.field.float().cpu())
    change = ColorChange(torch.cat(curves), torch.cat(fields))
    if not (torch.isfinite(change.curve).all() and torch.isfinite(change.field).all()):
        raise InputError(
            "The colour regressor answers with NaN; its weights are damaged: download or train them again."
        )
    return steady(change, mask, frames)


def steady(change: ColorChange, mask: torch.Tensor, frames: str) -> ColorChange:
    """The changes of pictures that are the frames of one clip, made one or steady; see `predict`.

    Weighted means over the frames in which there is a foreground; the effect on a pixel is linear in the change.
    """
    if frames not in FRAMES:
        raise InputError(f'Unknown "frames": {frames!r}; expected one of {", ".join(FRAMES)}.')
    count = len(change.curve)
    if frames == FRAMES[0] or count == 1:
        return change
    shown = ~geometry.is_empty(mask).cpu().expand(count)
    if frames == FRAMES[1]:
        weights = shown.float().expand(count, count)
    else:
        place = torch.arange(count, dtype=torch.float32)
        weights = torch.exp(-0.5 * ((place[:, None] - place) / SMOOTHING) ** 2) * shown
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
    return ColorChange(*(torch.einsum("ij,j...->i...", weights, value) for value in change))


def apply(
    composite: torch.Tensor, mask: torch.Tensor, change: ColorChange, amounts: Amounts | None = None, feather: int = 0
) -> torch.Tensor:
    """The composite with its foreground's colours changed, [B, 3, H, W] in [0, 1] on the composite's device.

    change: of as many pictures as the batch has, or of one for all. feather: pixels over which the edge fades in,
    inwards. A soft mask blends the change. Where the mask is 0, and everywhere with strength 0, the composite's pixels
    stay bit for bit.
    """
    amounts = amounts or Amounts()
    composite, mask = geometry.match(composite, mask)
    if len(change.curve) not in (1, len(composite)):
        raise InputError(
            f"{len(composite)} images came with {len(change.curve)} colour changes; give one for each, or one for all."
        )
    result = composite.clone()
    if amounts.strength == 0:
        return result
    with torch.inference_mode():
        for index, image in enumerate(result):
            alpha = geometry.feathered(mask[index : index + 1], feather)[0, 0] if feather else mask[index, 0]
            one = min(index, len(change.curve) - 1)
            _apply(image, alpha, change.curve[one].to(image.device), change.field[one].to(image.device), amounts)
    return result


def _apply(
    image: torch.Tensor, alpha: torch.Tensor, curve: torch.Tensor, field: torch.Tensor, amounts: Amounts
) -> None:
    """Changes [3, H, W] in place where alpha [H, W] is above 0, in strips of rows."""
    rows, columns = alpha.amax(1).nonzero()[:, 0], alpha.amax(0).nonzero()[:, 0]
    if not len(rows):
        return
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    height, width = alpha.shape
    across = _interpolation(field.shape[2], width, left, right, image)  # [w, W]
    down = _interpolation(field.shape[1], height, top, bottom, image)  # [h, H]
    field = torch.einsum("chw,wx->chx", field * amounts.local, across).flatten(1)  # [6, h * X]
    field = field.view(6, -1, right - left)
    luma = torch.tensor(LUMA, device=image.device)
    # Light is the change's part along the greys; what is left is colour.
    mix = amounts.strength * (
        amounts.color * torch.eye(3, device=image.device) + (amounts.light - amounts.color) * luma
    )
    step = max(1, STRIP // (right - left))
    for start in range(top, bottom, step):
        stop = min(start + step, bottom)
        pixels = image[:, start:stop, left:right]
        x = pixels.flatten(1)
        grown = torch.einsum("chx,hy->cyx", field, down[:, start - top : stop - top]).flatten(1)  # [6, N]
        added = torch.addmm(grown[3:].addcmul(x, grown[:3]), curve.T, monomials(x[None])[0])
        changed = torch.addmm(x, mix, added).clamp_(0, 1)
        weight = alpha[start:stop, left:right].flatten()
        x = torch.where(weight > 0, torch.lerp(x, changed, weight), x)
        image[:, start:stop, left:right] = x.view_as(pixels)


def _interpolation(cells: int, length: int, start: int, stop: int, like: torch.Tensor) -> torch.Tensor:
    """[cells, stop - start]: the weights of bilinear scaling from `cells` to `length` places (align_corners=False), a
    part of them.
    """
    eye = torch.eye(cells, device=like.device)[:, None]
    return F.interpolate(eye, length, mode="linear", align_corners=False)[:, 0, start:stop]


def mixed(composite: torch.Tensor, changed: torch.Tensor, amounts: Amounts) -> torch.Tensor:
    """So much of any change from the composite to `changed`, both [B, 3, H, W] in [0, 1]; `local` has no part in it.

    With the default amounts `changed` comes back as it is, with strength 0 the composite, and pixels that are equal in
    both stay so, all to the bit.
    """
    if amounts.strength == amounts.light == amounts.color == 1:
        return changed
    luma = torch.tensor(LUMA, device=composite.device)[:, None, None]
    difference = changed - composite
    light = (difference * luma).sum(1, keepdim=True)
    moved = composite + amounts.strength * (amounts.light * light + amounts.color * (difference - light))
    same = (difference == 0).all(1, keepdim=True) if amounts.strength else torch.ones_like(light, dtype=torch.bool)
    return torch.where(same, composite, moved.clamp(0, 1))


def harmonize(
    regressor: ColorRegressor,
    composite: torch.Tensor,
    mask: torch.Tensor,
    amounts: Amounts | None = None,
    *,
    feather: int = 0,
    frames: str = "each alone",
) -> tuple[torch.Tensor, ColorChange]:
    """The harmonized pictures, and how their colours were changed. Arguments as for `predict` and `apply`.

    A picture whose mask is empty, nowhere >= 0.5, is returned unchanged.
    """
    composite, mask = geometry.match(composite, mask)
    change = predict(regressor, composite, mask, frames)
    empty = geometry.is_empty(mask)
    kept = (
        torch.where(empty[:, None, None, None].to(mask.device), torch.zeros_like(mask), mask) if empty.any() else mask
    )
    return apply(composite, kept, change, amounts, feather), change
