"""A window around a small foreground: cut out, harmonized for itself, and put back.

The networks look at a copy of the picture of fixed size, in which a small foreground is a few pixels; in a window
around it they see it large. The window is a square, which no network has to squash, as far as the picture allows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import geometry
from .errors import InputError

# Of 1.25 to 6, for the bundled colour regressor. On pairs whose photo is continued around them, fMSE beside that of the
# whole picture: foregrounds under 0.1 % of the picture -38 %, to 0.25 % -21, to 0.5 % -30, to 1 % -20, to 2 % -15, and
# from there on no gain (2 to 5 % +3.7, 5 to 15 % -2.3). A context of 3 gives -32, -15, -25, -12, -11 and -1.1.
CONTEXT = 2.0
SMALL = 0.02  # of the picture
CHOICES = ("off", "auto")
LEAST = 64  # pixels of the picture a side: a smaller window shows next to nothing


@dataclass(frozen=True)
class Window:
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: torch.Tensor) -> torch.Tensor:
        """The window's part of [..., H, W], a view: [..., height, width]."""
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Crops(NamedTuple):
    """Where the crops of a batch come from: composite [B, 3, H, W], mask [N, 1, H, W] and the N windows. With one
    composite each mask is a foreground of it, otherwise N is B.
    """

    composite: torch.Tensor
    mask: torch.Tensor
    windows: list[Window]


def around(mask: torch.Tensor, context: float = CONTEXT, least: tuple[int, int] = (LEAST, LEAST)) -> Window:
    """The window around one foreground.

    mask: [1, 1, H, W] in [0, 1]; the foreground is where it is >= 0.5. context: the window's side as a multiple of the
    longer side of the foreground's box, >= 1. least: (height, width) in pixels that the window has at least. At the
    frame it is moved inwards, and cut only where the picture is smaller. An empty mask gives the whole picture.
    Raises InputError for a context below 1 and for another shape.
    """
    if not context >= 1:
        raise InputError(
            f"The context must be at least 1, the foreground alone, not {context:g}; {CONTEXT:g} is usual."
        )
    if mask.ndim != 4 or tuple(mask.shape[:2]) != (1, 1):
        raise InputError(f"A window lies around one mask, [1, 1, height, width], not {list(mask.shape)}.")
    whole = (mask.shape[-2], mask.shape[-1])
    inside = mask[0, 0] >= 0.5
    if not inside.any():
        return Window(0, 0, *whole)
    box = [lines.nonzero()[:, 0][[0, -1]].tolist() for lines in (inside.any(1), inside.any(0))]
    side = round(context * max(last + 1 - first for first, last in box))
    sides = [min(full, max(side, smallest)) for full, smallest in zip(whole, least, strict=True)]
    starts = [
        max(0, min((first + last + 1 - side) // 2, full - side))
        for (first, last), side, full in zip(box, sides, whole, strict=True)
    ]
    return Window(*starts, *sides)


def alike(masks: torch.Tensor, context: float = CONTEXT) -> list[Window]:
    """A window for each mask of [N, 1, H, W], all of one size, that of the largest, so that the crops are a batch."""
    found = [around(mask, context) for mask in masks.split(1) if not geometry.is_empty(mask).item()]
    least = (
        max((window.height for window in found), default=masks.shape[-2]),
        max((window.width for window in found), default=masks.shape[-1]),
    )
    return [
        Window(0, 0, *least) if geometry.is_empty(mask).item() else around(mask, context, least)
        for mask in masks.split(1)
    ]


def stitch(crop: torch.Tensor, picture: torch.Tensor, mask: torch.Tensor, window: Window) -> torch.Tensor:
    """The picture with the foreground of a harmonized crop put back; where the mask is 0 it stays as it is, to the bit.

    crop: [B, 3, h, w] in [0, 1], the window's part at any size; one of another size is scaled. picture: [B, 3, H, W].
    mask: [B, 1, H, W] or [1, 1, H, W], of the whole picture. A soft edge is not blended again: the endings have done
    so. Raises InputError where the three do not go together.
    """
    picture, mask = geometry.match(picture, mask)
    if crop.ndim != 4 or crop.shape[:2] != picture.shape[:2]:
        raise InputError(
            f"The crop must be a float tensor {[*picture.shape[:2]]} + [height, width] like its picture, not "
            f"{list(crop.shape)}."
        )
    result, part = picture.clone(), window.cut(picture)
    if tuple(part.shape[-2:]) != (window.height, window.width):
        raise InputError(
            f"The window {window} does not lie in a picture of {[*picture.shape[-2:]]}; cut it from this one."
        )
    scaled = geometry.resize(crop, (window.height, window.width))
    window.cut(result).copy_(torch.where(window.cut(mask) > 0, scaled, part))
    return result


def stitch_all(crops: torch.Tensor, source: Crops) -> torch.Tensor:
    """Every crop of [K, 3, h, w] put back: K foregrounds into their one picture, [1, 3, H, W]; otherwise each into its
    own, [K, 3, H, W], where several crops may be variants of one. InputError for other numbers.
    """
    composite, mask, windows = source
    if len(crops) != len(windows) and len(windows) != 1:
        raise InputError(
            f"{len(crops)} harmonized crops came with {len(windows)} windows; give one for each, in their order."
        )
    if len(windows) == 1:
        return stitch(crops, composite.expand(len(crops), -1, -1, -1), mask, windows[0])
    if len(composite) == 1:
        for crop, inside, window in zip(crops.split(1), mask.split(1), windows, strict=True):
            composite = stitch(crop, composite, inside, window)
        return composite
    parts = zip(crops.split(1), composite.split(1), mask.split(1), windows, strict=True)
    return torch.cat([stitch(*part) for part in parts])


def one_after_another(
    harmonize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    picture: torch.Tensor,
    masks: torch.Tensor,
    context: float = CONTEXT,
) -> torch.Tensor:
    """Each foreground harmonized in a window of its own; the later ones see what the earlier ones have become.

    harmonize: takes a composite [1, 3, h, w] and its mask [1, 1, h, w], and gives the composite harmonized, [1, 3, h,
    w]. picture: [1, 3, H, W]. masks: [N, 1, H, W], one for each foreground; empty ones are passed over.
    """
    for mask in masks.split(1):
        if not geometry.is_empty(mask).item():
            window = around(mask, context)
            picture = stitch(harmonize(window.cut(picture), window.cut(mask)), picture, mask, window)
    return picture


def helps(mask: torch.Tensor) -> bool:
    """Whether a foreground, [1, 1, H, W] in [0, 1], is so small that a crop helps: below `SMALL` of the picture."""
    return 0 < float((mask >= 0.5).float().mean()) < SMALL


def context_for(mask: torch.Tensor, choice: float | str) -> float | None:
    """The context for one foreground [1, 1, H, W]; None for none. choice: "off", "auto" (where it helps) or itself."""
    if choice == "auto":
        return CONTEXT if helps(mask) else None
    return None if isinstance(choice, str) else choice
