"""What a MODEL or a VAE of any node is: its kind and its shapes."""

import comfy.model_patcher
import comfy.sd

from . import loading


def is_harmonizer(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether it takes [noisy latent 4, mask 1, composite latent 4] as SD 1.5 inpainting does."""
    inner = model.model
    if input_channels(model) != 9 or inner.adm_channels != 0 or inner.latent_format.latent_channels != 4:
        return False
    return tuple(inner.concat_keys) == ("mask", "masked_image")


def kind_of(model: comfy.model_patcher.ModelPatcher) -> str:
    """The name of its kind of model, as the host knows it."""
    config = getattr(model.model, "model_config", None)
    return "DiffHarmony" if isinstance(config, loading.HarmonizerConfig) else type(config).__name__


def input_channels(model: comfy.model_patcher.ModelPatcher) -> int | None:
    config = getattr(model.model, "model_config", None)
    return (getattr(config, "unet_config", None) or {}).get("in_channels")


def text_width(model: comfy.model_patcher.ModelPatcher) -> int:
    """The width of the CONDITIONING that a harmonizer takes."""
    return model.model.model_config.unet_config["context_dim"]


def latent_layout(vae: comfy.sd.VAE) -> tuple[int, int]:
    """(channels, factor): a VAE's latents have so many channels at 1/factor of the size."""
    return vae.latent_channels, vae.spacial_compression_decode()


def is_sd15_vae(vae: comfy.sd.VAE) -> bool:
    return latent_layout(vae) == (4, 8) and vae.latent_dim == 2 and vae.first_stage_model is not None


def vae_width(vae: comfy.sd.VAE) -> int | None:
    """The first width of its encoder; None where that is not told."""
    first = getattr(getattr(vae.first_stage_model, "encoder", None), "conv_in", None)
    return None if first is None else first.out_channels
