"""Running the host's networks: encoding, decoding, refining, with progress, previews and interrupts.

Latents are unscaled, as everywhere in the host.
"""

import copy
import logging
from collections.abc import Iterator

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.utils
import latent_preview
import node_helpers
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from ...diffharmony_models import sampling
from ...diffharmony_models.errors import InputError
from ...diffharmony_models.networks import refiner

logger = logging.getLogger(__name__)

WARNINGS = "diffharmony_warnings"  # in what a node tells the page; web/js/warnings.js reads it


class _Moments:
    """The encoder of an AutoencoderKL, giving the moments of its posterior instead of the mode."""

    def __init__(self, network: torch.nn.Module):
        self.network = network

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        moments = self.network.encoder(pixels)
        return self.network.quant_conv(moments) if hasattr(self.network, "quant_conv") else moments


def encode(vae: comfy.sd.VAE, composite: torch.Tensor) -> sampling.Posterior:
    """[B, 3, H, W] in [0, 1], sides multiples of 8, to the posterior over unscaled latents [B, 4, H / 8, W / 8].

    By the VAE's own `encode`, so that its dtype, batches and tiling hold. A VAE without a posterior (TAESD) has no
    spread.
    """
    pixels, network = composite.movedim(1, -1), vae.first_stage_model  # BCHW -> BHWC
    regularization = type(getattr(network, "regularization", None)).__name__
    if regularization != "DiagonalGaussianRegularizer" or getattr(network, "bn", None) is not None:
        mean = vae.encode(pixels)
        return sampling.Posterior(mean, torch.zeros_like(mean))
    view = copy.copy(vae)
    view.first_stage_model, view.latent_channels = _Moments(network), 2 * vae.latent_channels
    return sampling.Posterior.from_moments(view.encode(pixels))


def decode(vae: comfy.sd.VAE, samples: torch.Tensor) -> torch.Tensor:
    """Unscaled latents [B, 4, h, w] to [B, 3, 8h, 8w] in [0, 1]."""
    return vae.decode(samples).float().movedim(-1, 1)  # BHWC -> BCHW


def condition(null_text: list, latent: torch.Tensor, mask: torch.Tensor) -> list:
    """CONDITIONING with what an inpainting UNet sees beside the noisy latent.

    latent: unscaled, [B, 4, h, w]; mask: [B, 1, h, w].
    """
    return node_helpers.conditioning_set_values(null_text, {"concat_latent_image": latent, "concat_mask": mask})


def refine(
    patcher: comfy.model_patcher.ModelPatcher, harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The refiner on [B, 3, H, W] in [0, 1], a picture at a time, with progress and interrupts. InputError for what can
    never fit into memory."""
    module, device = patcher.model, patcher.load_device
    height, width = composite.shape[-2:]
    # As measured: the widest level holds the skips, a concatenation of two widths and the working copies of one block.
    channels = module.config["block_out_channels"][0] * (module.config["layers_per_block"] + 13)
    needed, there = height * width * channels * mm.dtype_size(module.conv_in.weight.dtype), mm.get_total_memory(device)
    if needed > there:
        raise InputError(
            f"Refining {width}x{height} takes about {needed / 1e9:.0f} GB; there are {there / 1e9:.0f}. End in "
            "TransferToFullResolution, which takes any size, or scale composite and mask down before."
        )
    mm.load_models_gpu([patcher], memory_required=needed)
    results = harmonized.to(mm.intermediate_device(), torch.float32, copy=True)
    for one in each(results):
        inputs = (tensor[one].to(device) for tensor in (harmonized, composite, mask))
        with torch.no_grad():
            results[one] = refiner.refine(module, *inputs).to(results)
    return results


def each(results: torch.Tensor) -> Iterator[slice]:
    """Slices for one picture after the other, with the progress bar; stops where the user has cancelled.

    results: [B, 3, H, W] in [0, 1], into which the caller writes each result. The preview shows what lies there before
    and after.
    """
    count = len(results)
    bar = comfy.utils.ProgressBar(count)
    for index in range(count):
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(index, count, _preview(results[index]))
        yield slice(index, index + 1)
        bar.update_absolute(index + 1, count, _preview(results[index]))


def _preview(picture: torch.Tensor) -> tuple | None:
    """A picture [3, H, W] as the host's progress bar takes it, which scales it; None where no previews are wanted."""
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    pixels = (picture.clamp(0, 1) * 255).round().to("cpu", torch.uint8).movedim(0, -1)  # CHW -> HWC
    return "JPEG", Image.fromarray(pixels.numpy()), latent_preview.MAX_PREVIEW_RESOLUTION


def warn(node: str, warnings: list[str]) -> dict[str, list[str]] | None:
    """Logs what a node doubts, and gives it as the `ui` of its output; web/js/warnings.js brings that onto the page."""
    for warning in warnings:
        logger.warning("%s: %s", node, warning)
    return {WARNINGS: warnings} if warnings else None


def scale(picture: torch.Tensor, size: tuple[int, int], method: str) -> torch.Tensor:
    """[B, 3, H, W] to [B, 3, *size] by one of the host's methods, in [0, 1]."""
    return comfy.utils.common_upscale(picture, size[1], size[0], method, "disabled").clamp(0, 1)
