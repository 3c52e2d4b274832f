"""A pipeline with random weights at the smallest widths, and pictures for it."""

import torch
from support import smallest_networks

from diffharmony_models.networks.harmony_vae import HarmonyVAE
from diffharmony_models.pipeline import DiffHarmony
from diffharmony_models.sampling import Noise


def tiny(**changes) -> DiffHarmony:
    """Every part at tiny width, with random weights."""
    torch.manual_seed(3)
    widths = (8, 8, 16, 16)
    parts = smallest_networks(widths)
    parts["harmony_vae"] = HarmonyVAE(block_out_channels=widths, layers_per_block=1, norm_num_groups=4)
    parts = {name: part.eval().requires_grad_(False) for name, part in parts.items()}
    settings = {"null_text": torch.randn(5, 8), "prediction_type": "v_prediction", "resolution": 64, "name": "tiny"}
    return DiffHarmony(**{**parts, **settings, **changes})


def pair(batch: int = 1, height: int = 60, width: int = 52) -> tuple[torch.Tensor, torch.Tensor]:
    composite, mask = torch.rand(batch, 3, height, width), torch.zeros(batch, 1, height, width)
    mask[..., 10:40, 12:41] = 1
    mask[..., 40, 12:41] = 0.5
    return composite, mask


def drawn(seed: int, batch: int) -> Noise:
    """Noise from one generator for the whole batch, as the published implementation draws it."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn((batch, *shape), generator=generator)
