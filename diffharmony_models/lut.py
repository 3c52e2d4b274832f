"""A change of colour as a 3D look-up table, which other programs read, in Adobe's .cube format (Cube LUT Specification
1.0, 2013). A table holds what depends on a pixel's colour alone; `left_out` says how much of a change does not.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import geometry, recolor
from .errors import InputError
from .files.writing import write_bytes
from .luma import LUMA
from .networks.color_regressor import ColorChange, monomials
from .recolor import Amounts
from .transfer import ColorModel, find

SIZE = 33
SEEN = 128  # pixels of the shorter side of the copies that go with the changes of a batch
FITTED = 256  # and of those between which a change is found
GRID = 32  # points a side at which a fitted change of local colour is kept

Curve = Callable[[torch.Tensor], torch.Tensor]
"""Colours [1, 3, H, W] in [0, 1] to the changed ones, in [0, 1]."""


class Colors(NamedTuple):
    """The change of each picture of a batch, and what it was found on: small copies, [B, 3, h, w] and [B, 1, h, w].

    change: `recolor.apply` makes it, or a `ColorModel` for each picture, as `transfer.find` gives it.
    """

    change: ColorChange | list[ColorModel | None]
    amounts: Amounts
    composite: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class LeftOut:
    """What of a change a table cannot hold, over the foreground. delta_e: mean CIE76 difference of the colours that the
    table gives from those of the change; whole: of the composite from them; decibels: PSNR of the former.
    """

    delta_e: float
    whole: float
    decibels: float

    def __str__(self) -> str:
        return (
            f"the change is ΔE {self.whole:.1f} in the mean, of which the table leaves out what varies over the "
            f"foreground: ΔE {self.delta_e:.1f} ({self.decibels:.1f} dB)"
        )


def small(picture: torch.Tensor, side: int = SEEN) -> torch.Tensor:
    """A copy of [B, C, H, W] of at most `side` pixels on its shorter side, on the CPU."""
    scale = min(1.0, side / min(picture.shape[-2:]))
    size = [max(1, round(side * scale)) for side in picture.shape[-2:]]
    return geometry.resize(picture.float(), size).cpu().clone()


def reduced(model: ColorModel | None) -> ColorModel | None:
    """The model with its local part on a coarse grid, so that those of a long clip can be kept."""
    return None if model is None else ColorModel(model.polynomial, geometry.resize(model.local, (GRID, GRID)))


def curve_of(change: ColorChange, mask: torch.Tensor, amounts: Amounts | None = None) -> Curve:
    """The part of one picture's predicted change that depends on colour alone: its curve, and its field's mean over the
    foreground. change: of one picture. mask: [1, 1, H, W] in [0, 1].
    """
    amounts = amounts or Amounts()
    weight = F.adaptive_avg_pool2d(mask.float().cpu(), change.field.shape[-2:])
    field = (change.field.cpu() * weight).sum((2, 3))[0] / weight.sum().clamp_min(1e-6) * amounts.local
    gain, offset = field.view(2, 3, 1, 1)

    def curve(colors: torch.Tensor) -> torch.Tensor:
        added = torch.einsum("mc,bmhw->bchw", change.curve[0].cpu(), monomials(colors)) + colors * gain + offset
        light = (added * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        moved = colors + amounts.strength * (amounts.light * light + amounts.color * (added - light))
        return moved.clamp(0, 1)

    return curve


def curve_of_model(model: ColorModel, amounts: Amounts | None = None) -> Curve:
    """The polynomial of a fitted change; its local rest has no mean over the foreground."""
    model = model.to(torch.device("cpu"))
    return lambda colors: recolor.mixed(colors, model.everywhere(colors).clamp(0, 1), amounts or Amounts())


def curve_between(composite: torch.Tensor, changed: torch.Tensor, mask: torch.Tensor) -> Curve:
    """The change between two pictures [1, 3, H, W], fitted over the foreground of the mask [1, 1, H, W]. InputError for
    an empty mask.
    """
    composite, changed, mask = (small(picture, FITTED) for picture in (composite, changed, mask))
    model = find(changed, composite, mask)
    if model is None:
        raise InputError("The mask is empty, so there is no change of colour to save; give one with a foreground.")
    return curve_of_model(model)


def table(curve: Curve, size: int = SIZE) -> torch.Tensor:
    """[size, size, size, 3] in [0, 1]: the changed colour of each blue, green and red, in steps of 1 / (size - 1)."""
    steps = torch.linspace(0, 1, size)
    blue, green, red = torch.meshgrid(steps, steps, steps, indexing="ij")
    colors = torch.stack((red, green, blue)).view(1, 3, size, size * size)
    return curve(colors).view(3, size, size, size).movedim(0, -1).contiguous()


def apply(lut: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] in [0, 1] through the table, linear between its colours."""
    grid = image.float().movedim(1, -1)[:, None] * 2 - 1  # red across, green down, blue in depth
    colors = lut.movedim(-1, 0)[None].expand(len(image), -1, -1, -1, -1)
    return F.grid_sample(colors, grid, mode="bilinear", padding_mode="border", align_corners=True)[:, :, 0]


def left_out(lut: torch.Tensor, composite: torch.Tensor, changed: torch.Tensor, mask: torch.Tensor) -> LeftOut:
    """How far the table is from the change between two pictures [1, 3, H, W] in [0, 1], where the mask is >= 0.5."""
    inside = (mask >= 0.5)[0, 0]
    if not inside.any():
        return LeftOut(0.0, 0.0, torch.inf)
    own, wanted, found = (image[0][:, inside].T for image in (composite, changed, apply(lut, composite)))
    lab = [_lab(colors.clamp(0, 1)) for colors in (own, wanted, found)]
    delta_e, whole = (float((lab[1] - other).norm(dim=1).mean()) for other in (lab[2], lab[0]))
    return LeftOut(delta_e, whole, float(-10 * torch.log10((found - wanted).square().mean())))


def _lab(colors: torch.Tensor) -> torch.Tensor:
    """sRGB [..., 3] in [0, 1] to CIE Lab, white D65 (IEC 61966-2-1, CIE 15:2004)."""
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdim=True)).T
    x, y, z = torch.where(xyz > 216 / 24389, xyz.clamp(min=0) ** (1 / 3), xyz * 841 / 108 + 4 / 29).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def of_picture(colors: Colors, number: int) -> tuple[torch.Tensor, LeftOut] | None:
    """The table of one picture of a batch, and what it leaves out; None where the picture has no foreground."""
    one = slice(number, number + 1)
    composite, mask = colors.composite[one], colors.mask[one]
    if geometry.is_empty(mask).item():
        return None
    if isinstance(colors.change, ColorChange):
        place = min(number, len(colors.change.curve) - 1)
        change = ColorChange(*(value[place : place + 1] for value in colors.change))
        lut = table(curve_of(change, mask, colors.amounts))
        changed = recolor.apply(composite, mask.ge(0.5).float(), change, colors.amounts)
        return lut, left_out(lut, composite, changed, mask)
    model = colors.change[number]
    if model is None:
        return None
    lut = table(curve_of_model(model, colors.amounts))
    local = geometry.resize(model.to(composite.device).local, composite.shape[-2:])
    changed = recolor.mixed(composite, model.to(composite.device)(composite, local).clamp(0, 1), colors.amounts)
    return lut, left_out(lut, composite, changed, mask)


def check_name(path: str | os.PathLike) -> None:
    """InputError for a name that does not end in .cube."""
    if not os.fspath(path).lower().endswith(".cube"):
        raise InputError(f"{path} is no name of a look-up table; give one that ends in .cube.")


def write(path: str | os.PathLike, lut: torch.Tensor, title: str) -> None:
    """Writes the table as a .cube file. InputError for another ending of the name."""
    check_name(path)
    name = "".join(letter for letter in title if letter.isascii() and letter.isprintable() and letter != '"')
    lines = [f'TITLE "{name}"', f"LUT_3D_SIZE {len(lut)}", "DOMAIN_MIN 0.0 0.0 0.0", "DOMAIN_MAX 1.0 1.0 1.0"]
    lines += ["{:.6f} {:.6f} {:.6f}".format(*color) for color in lut.flatten(0, 2).tolist()]
    write_bytes(path, ("\n".join(lines) + "\n").encode("ascii"))
