"""Random weights of Stable Diffusion 1.5 inpainting's size: as much work as the published ones."""

import torch

from .. import checkpoint

UNET_WIDTHS, VAE_WIDTHS = (320, 640, 1280, 1280), (128, 256, 512, 512)  # SD 1.5
TOKENS, TEXT_WIDTH = 77, 768


def random_checkpoint(
    unet_widths: tuple[int, ...] = UNET_WIDTHS, vae_widths: tuple[int, ...] = VAE_WIDTHS
) -> checkpoint.Checkpoint:
    """A Checkpoint of SD 1.5 inpainting's shape with random weights, float32, no refiner.

    Every layer keeps its input's variance.
    """
    unet, vae = networks(unet_widths, vae_widths)
    generator = torch.Generator().manual_seed(0)
    for module in (unet, vae):
        module.to_empty(device="cpu").requires_grad_(False)
        for name, tensor in module.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
            else:
                tensor.fill_(name.endswith("weight"))
    null_text = torch.randn(TOKENS, TEXT_WIDTH, generator=generator)
    return checkpoint.Checkpoint(
        "random", checkpoint.part_from(unet), checkpoint.part_from(vae), null_text=null_text, resolution=512
    )


def networks(unet_widths: tuple[int, ...], vae_widths: tuple[int, ...]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """UNet2DConditionModel and AutoencoderKL of SD 1.5 inpainting, without memory.

    The widths are four multiples of 32 each.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=9,
            block_out_channels=tuple(unet_widths),
            attention_head_dim=8,
            cross_attention_dim=TEXT_WIDTH,
        )
        vae = AutoencoderKL(
            block_out_channels=tuple(vae_widths), layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    return unet, vae
