"""The ways from the decoded picture, at the size of stage 1, to the finished one. A further one is a further entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import geometry
from .transfer import transfer as transfer_colors

if TYPE_CHECKING:
    from .settings import Settings

Refine = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(harmonized, composite, mask), all of one size, to the refined picture."""

Finish = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "Settings", Refine], torch.Tensor]
"""(harmonized [B, 3, h, w], composite [B, 3, H, W], mask [B, 1, H, W], settings, the refiner) to [B, 3, H, W]. All in
[0, 1].
"""


def transfer(
    harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, settings: "Settings", refine: Refine
) -> torch.Tensor:
    """The composite's own pixels in the harmonized colours."""
    return transfer_colors(
        harmonized, composite, mask, radius=settings.radius, feather=settings.feather, detail=settings.detail
    )


def paper(
    harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, settings: "Settings", refine: Refine
) -> torch.Tensor:
    """The decoded picture, scaled and refined."""
    scaled = geometry.resize(harmonized, composite.shape[-2:])
    return _pasted(refine(scaled, composite, mask), composite, mask, settings)


def none(
    harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, settings: "Settings", refine: Refine
) -> torch.Tensor:
    """The decoded picture, scaled."""
    scaled = geometry.resize(harmonized, composite.shape[-2:]).clamp(0, 1)  # rounding
    return _pasted(scaled, composite, mask, settings)


def _pasted(picture: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, settings: "Settings") -> torch.Tensor:
    return geometry.paste(picture, composite, mask, settings.feather) if settings.keep_background else picture


@dataclass(frozen=True)
class Ending:
    """finish: what is done. title: of its result, beside others. options: the settings that it alone has a use for.
    refines: whether it needs the checkpoint's refiner.
    """

    finish: Finish
    title: str
    options: tuple[str, ...]
    refines: bool = False


ENDINGS = {
    "transfer": Ending(transfer, "colours carried to the original", ("radius", "detail")),
    "paper": Ending(paper, "refined", ("keep_background",), refines=True),
    "none": Ending(none, "not refined", ("keep_background",)),
}
