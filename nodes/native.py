"""diffusers' configs in the host's words: its network and VAE know these settings under other names.

Pure functions, without ComfyUI. ValueError for a network that the host's own code does not build.
"""

# What the host's UNet has built in. A config that says otherwise describes another network.
_UNET = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_VAE = {
    "act_fn": ("silu", "swish"),
    "in_channels": (3,),
    "latent_channels": (4,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "out_channels": (3,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
_BUILT_IN_GROUPS = 32  # the host builds its normalisation with these; what a config says is set afterwards


def unet_config(config: dict) -> dict:
    """The host's `unet_config` for a UNet2DConditionModel's config.json."""
    _check("UNet", config, _UNET)
    widths, multiples = _widths("UNet", config)
    levels = len(widths)
    layers = _each(config.get("layers_per_block", 2), levels)
    depths = _each(config.get("transformer_layers_per_block", 1), levels)
    down = [_ATTENTION.get(name) for name in config["down_block_types"]]
    up = [
        _ATTENTION.get(name) for name in reversed(config["up_block_types"])
    ]  # the host counts both from the top level
    if None in down + up or len(down) != levels or len(up) != levels:
        raise ValueError(
            f"The UNet has blocks {config['down_block_types']}, {config['up_block_types']}; ComfyUI's network has "
            f"{', '.join(_ATTENTION)}, one a level."
        )
    heads = set(_each(config.get("num_attention_heads") or config.get("attention_head_dim", 8), levels))
    if len(heads) != 1:
        raise ValueError(
            f"The UNet has {sorted(heads)} attention heads; ComfyUI's network has the same number on all levels."
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
        "use_linear_in_transformer": bool(config.get("use_linear_projection", False)),
        "use_spatial_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_checkpoint": False,
        "legacy": False,
        "adm_in_channels": None,
    }


def vae_config(config: dict) -> dict:
    """The host's `config` of a VAE for an AutoencoderKL's config.json."""
    _check("VAE", config, _VAE)
    widths, multiples = _widths("VAE", config)
    layers = config.get("layers_per_block", 1)
    if len(widths) != 4 or layers not in (1, 2):
        raise ValueError(
            f"The VAE has {len(widths)} levels of {layers} layers; ComfyUI's converter knows 4 levels of 1 or 2."
        )
    settings = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": multiples,
        "num_res_blocks": layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"params": {"ddconfig": settings, "embed_dim": 4}}


def groups(config: dict) -> int:
    """Normalisation groups of a UNet or VAE."""
    return config.get("norm_num_groups", _BUILT_IN_GROUPS)


def _check(name: str, config: dict, built_in: dict) -> None:
    for key, allowed in built_in.items():
        if key in config and config[key] not in allowed:
            raise ValueError(
                f"The {name}'s config says {key} {config[key]!r}; ComfyUI's own network has only {allowed[0]!r}."
            )


def _widths(name: str, config: dict) -> tuple[list[int], list[int]]:
    widths = list(config["block_out_channels"])
    if any(width % widths[0] or width % _BUILT_IN_GROUPS for width in widths):
        raise ValueError(
            f"The {name}'s widths are {widths}; ComfyUI's own network takes whole multiples of the first one and of {_BUILT_IN_GROUPS}."
        )
    return widths, [width // widths[0] for width in widths]


def _each(value, levels: int) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels
