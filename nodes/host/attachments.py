"""What LoadDiffHarmony attaches to its MODEL and its null text, and what holds where another node made them."""

import comfy.model_patcher

from ...diffharmony_models import checkpoint

RESOLUTION = "diffharmony_resolution"  # on a MODEL and in the null text: the checkpoint's own resolution
_STEPS = "diffharmony_steps"  # on a MODEL: how many sampling steps the checkpoint was made for
_VAE_WIDTH = "diffharmony_vae"  # on a MODEL: the first width of the VAE that it was trained with
_PUBLISHED_RESOLUTION = 1024


def attach(model: comfy.model_patcher.ModelPatcher, resolution: int, steps: int) -> None:
    model.set_attachments(RESOLUTION, resolution)
    model.set_attachments(_STEPS, steps)


def attach_vae_width(model: comfy.model_patcher.ModelPatcher, width: int) -> None:
    model.set_attachments(_VAE_WIDTH, width)


def resolution_of(null_text: list, model: comfy.model_patcher.ModelPatcher | None = None) -> int:
    """The checkpoint's own resolution, where these come from one of ours; else that of the published one."""
    found = model.get_attachment(RESOLUTION) if model is not None else None
    return found or null_text[0][1].get(RESOLUTION) or _PUBLISHED_RESOLUTION


def steps_of(model: comfy.model_patcher.ModelPatcher) -> int:
    """How many steps the checkpoint was made for, where the MODEL comes from one of ours; else the published number."""
    return model.get_attachment(_STEPS) or checkpoint.STEPS


def vae_width_of(model: comfy.model_patcher.ModelPatcher) -> int | None:
    """The first width of the VAE that the MODEL was trained with, where it comes from one of our checkpoints."""
    return model.get_attachment(_VAE_WIDTH)
