"""A pipeline with random weights at the smallest widths, and pictures for it."""

import torch

from diffharmony_models.networks.harmony_vae import HarmonyVAE
from diffharmony_models.networks.refiner import Refiner
from diffharmony_models.pipeline import DiffHarmony


def tiny(**changes) -> DiffHarmony:
    """Every part at tiny width, with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(3)
    widths = (8, 8, 16, 16)
    unet = UNet2DConditionModel(
        in_channels=9,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.18215,
    )
    refiner = Refiner(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    harmony_vae = HarmonyVAE(block_out_channels=widths, layers_per_block=1, norm_num_groups=4)
    parts = {"unet": unet, "vae": vae, "refiner": refiner, "harmony_vae": harmony_vae}
    parts = {name: part.eval().requires_grad_(False) for name, part in parts.items()}
    settings = {"null_text": torch.randn(5, 8), "prediction_type": "v_prediction", "resolution": 64, "name": "tiny"}
    return DiffHarmony(**{**parts, **settings, **changes})


def pair(batch: int = 1, height: int = 60, width: int = 52) -> tuple[torch.Tensor, torch.Tensor]:
    composite, mask = torch.rand(batch, 3, height, width), torch.zeros(batch, 1, height, width)
    mask[..., 10:40, 12:41] = 1
    mask[..., 40, 12:41] = 0.5
    return composite, mask
