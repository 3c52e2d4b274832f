"""The smallest checkpoint, and a composite with its mask."""

from pathlib import Path

import pytest
import torch
from command_line import make_pair

from diffharmony_models import checkpoint
from diffharmony_models.networks.refiner import Refiner


def _part(model) -> checkpoint.Part:
    return checkpoint.Part(dict(model.config), {name: tensor.clone() for name, tensor in model.state_dict().items()})


@pytest.fixture(scope="session")
def tiny() -> checkpoint.Checkpoint:
    """A whole DiffHarmony with random weights at the smallest widths, working at 64."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=9, out_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=8, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1, latent_channels=4,
        norm_num_groups=4, scaling_factor=0.18215,
    )  # fmt: skip
    unet_part, vae_part = _part(unet), _part(vae)
    unet_part.config["_class_name"], vae_part.config["_class_name"] = "UNet2DConditionModel", "AutoencoderKL"
    refiner = Refiner(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    return checkpoint.Checkpoint(
        "tiny", unet=unet_part, vae=vae_part, refiner=_part(refiner), null_text=torch.randn(2, 8), resolution=64
    )  # fmt: skip


@pytest.fixture(scope="session")
def weights(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.write(tiny, path)
    return path


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return make_pair(tmp_path)
