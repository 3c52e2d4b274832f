"""diffusers' configs in the host's words: its network and VAE know these settings under other names.

Pure functions, without ComfyUI. InputError for a network that the host's own code does not build.
"""

from ...diffharmony_models.checkpoint import configs as checkpoint_configs
from ...diffharmony_models.checkpoint.rules import each
from ...diffharmony_models.errors import InputError

_BUILT_IN_GROUPS = 32  # the host builds its normalisation with these; what a config says is set afterwards


def unet_config(config: dict) -> dict:
    """The host's `unet_config` for a UNet2DConditionModel's config.json."""
    config = checkpoint_configs.clean("unet", config)
    widths, multiples = _widths("UNet", config)
    levels = len(widths)
    layers = each(config["layers_per_block"], levels)
    depths = each(config["transformer_layers_per_block"], levels)
    down = [name.startswith("CrossAttn") for name in config["down_block_types"]]
    # The host counts both from the top level.
    up = [name.startswith("CrossAttn") for name in reversed(config["up_block_types"])]
    heads = set(each(config["attention_head_dim"], levels))
    if len(heads) != 1:
        raise InputError(
            f"The UNet has {sorted(heads)} attention heads; ComfyUI's network has the same number on all levels. "
            "Use Stable Diffusion 1.5's shape of network."
        )
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": multiples,
        "num_res_blocks": layers,
        "transformer_depth": [depth * has for n, depth, has in zip(layers, depths, down) for _ in range(n)],
        "transformer_depth_middle": depths[-1],
        "transformer_depth_output": [depth * has for n, depth, has in zip(layers, depths, up) for _ in range(n + 1)],
        "num_heads": heads.pop(),
        "num_head_channels": -1,
        "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": config["use_linear_projection"],
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_checkpoint": False,
        "legacy": False,
        "adm_in_channels": None,
    }


def vae_config(config: dict) -> dict:
    """The host's `config` of a VAE for an AutoencoderKL's config.json."""
    config = checkpoint_configs.clean("vae", config)
    widths, multiples = _widths("VAE", config)
    layers = config["layers_per_block"]
    if len(widths) != 4 or layers not in (1, 2) or not config["mid_block_add_attention"]:
        raise InputError(
            f"The VAE has {len(widths)} levels of {layers} layers, mid_block_add_attention "
            f"{config['mid_block_add_attention']}; ComfyUI's converter knows 4 levels of 1 or 2, with attention. "
            "Use a VAE of Stable Diffusion 1.5's shape."
        )
    settings = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": multiples,
        "num_res_blocks": layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"params": {"ddconfig": settings, "embed_dim": config["latent_channels"]}}


def groups(config: dict) -> int:
    """Normalisation groups of a UNet or VAE."""
    return config.get("norm_num_groups", _BUILT_IN_GROUPS)


def _widths(name: str, config: dict) -> tuple[list[int], list[int]]:
    widths = config["block_out_channels"]
    if any(width % widths[0] or width % _BUILT_IN_GROUPS for width in widths):
        raise InputError(
            f"The {name}'s widths are {widths}; ComfyUI's own network takes whole multiples of the first one and of "
            f"{_BUILT_IN_GROUPS}. Use the command line for these weights."
        )
    return widths, [width // widths[0] for width in widths]
