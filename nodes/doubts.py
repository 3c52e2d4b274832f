"""What is probably wrong with what a node can use all the same, in words for its user."""

import comfy.model_patcher
import comfy.sd
import torch

from ..diffharmony_models import geometry
from ..diffharmony_models.align import Fit
from ..diffharmony_models.lut import LeftOut
from .host import attachments, inspection

SPECK = 16  # pixels; a foreground of fewer is a slip of the brush
VISIBLE = 2.0  # ΔE; a difference of fewer is hardly seen
FULL = 0.999  # of the picture: a mask that covers more leaves no background


def of_mask(mask: torch.Tensor) -> list[str]:
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


def of_small_mask(mask: torch.Tensor, small: torch.Tensor, size: tuple[int, int]) -> list[str]:
    """A foreground that is lost on the way from `mask` [B, 1, H, W] to `small`, which the UNet sees at 1/8 of `size`,
    (height, width) in pixels."""
    if not (geometry.is_empty(small) & ~geometry.is_empty(mask)).any():
        return []
    return [f"A foreground is too small to be seen at {size[1]}x{size[0]}; use a higher resolution."]


def of_vae(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE) -> list[str]:
    """A MODEL that was trained with a VAE of other widths: such latents mean nothing to it."""
    trained, found = attachments.vae_width_of(model), inspection.vae_width(vae)
    if trained is None or found is None or found == trained:
        return []
    return [
        "This MODEL was trained with a VAE of its own; with another one the colours go wrong. "
        "Wire LoadDiffHarmony's VAE."
    ]


def of_fit(fit: Fit) -> list[str]:
    """A picture that `align` could not lay over its composite."""
    if not fit.poor:
        return []
    return [
        f"The harmonized picture hardly fits the composite: {fit.after:.2f} of 1. Does it show the same thing? "
        "Where a model painted something else, only its colours can be taken; switch align off."
    ]


def of_lut(rest: LeftOut) -> list[str]:
    """A change that a look-up table shows visibly otherwise."""
    if rest.delta_e <= VISIBLE:
        return []
    return [
        f"This change varies over the foreground: the table leaves out ΔE {rest.delta_e:.1f} of {rest.whole:.1f}. "
        "With local 0 in Harmonize Colors nothing is left out."
    ]
