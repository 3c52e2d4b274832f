"""The host's networks at tiny width, and how a signature is checked."""

import inspect
from collections.abc import Callable

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch

CPU = torch.device("cpu")
UNET = {
    "image_size": 32,
    "in_channels": 9,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "use_linear_in_transformer": False,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "legacy": False,
    "adm_in_channels": None,
    "num_heads": 4,
    "num_head_channels": -1,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def takes(function: Callable, *names: str, after: int = 0) -> None:
    """A function has these parameters, in this order, from the `after`-th on."""
    found = list(inspect.signature(function).parameters)[after:]
    assert [name for name in found if name in names] == list(names), f"{function}: {found}"


def unet() -> comfy.model_base.BaseModel:
    config = comfy.supported_models.SD15(dict(UNET))
    config.unet_config["num_heads"] = 4
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.EPS)
    model.set_inpaint()
    return model


def vae() -> comfy.sd.VAE:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    network = AutoencoderKL(ddconfig=VAE, embed_dim=4)
    state = {key: torch.full_like(value, 0.01) for key, value in network.state_dict().items()}
    return comfy.sd.VAE(sd=state, config={"params": {"ddconfig": VAE, "embed_dim": 4}}, dtype=torch.float32)


def patcher() -> comfy.model_patcher.ModelPatcher:
    return comfy.model_patcher.CoreModelPatcher(unet(), load_device=CPU, offload_device=CPU)
