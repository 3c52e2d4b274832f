"""What the config of each kind of part may say: of each key its rule and its default. Plain Python.

A default that is a function gets the values so far.
"""

from collections.abc import Callable
from typing import Any

from .rules import MISSING, NEEDED, Each, Either, Number, OneOf, Whole, each, ignored, shown

Schema = dict[str, tuple[Callable[[Any], Any], Any]]  # of each key: rule, default

RESOLUTIONS = range(64, 8193)
TOKENS = 1024  # the most that a null text may have

_WIDTH, _COUNT, _GROUPS = Whole(1, 4096), Whole(1, 16), Whole(1, 512)
_NONE, _NO, _YES, _FLAG = OneOf(None), OneOf(False), OneOf(True), OneOf(False, True)
_SILU, _ONE = OneOf("silu", "swish"), OneOf(1)
_SIDE = Whole(1, RESOLUTIONS[-1])
# What ComfyUI's network has built in, and Stable Diffusion's has no others.
_WITHOUT = """addition_embed_type class_embed_type cross_attention_norm encoder_hid_dim encoder_hid_dim_type
num_attention_heads num_class_embeds reverse_transformer_layers_per_block time_cond_proj_dim time_embedding_act_fn
time_embedding_dim timestep_post_act"""


def _blocks(name: str) -> tuple:
    return Each(OneOf(name)), lambda config: [name] * len(config["block_out_channels"])


UNET: Schema = {
    "_class_name": (OneOf("UNet2DConditionModel"), "UNet2DConditionModel"),
    "block_out_channels": (Each(_WIDTH), [320, 640, 1280, 1280]),
    "in_channels": (Whole(1, 64), 4),
    "out_channels": (OneOf(4), 4),
    "layers_per_block": (Either(_COUNT, Each(_COUNT)), 2),
    "transformer_layers_per_block": (Either(_COUNT, Each(_COUNT)), 1),
    "attention_head_dim": (Either(Whole(1, 256), Each(Whole(1, 256))), 8),  # diffusers' name for the number of heads
    "cross_attention_dim": (Whole(1, 8192), 1280),
    "norm_num_groups": (_GROUPS, 32),
    "down_block_types": (
        Each(OneOf("CrossAttnDownBlock2D", "DownBlock2D")),
        ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    ),
    "up_block_types": (Each(OneOf("CrossAttnUpBlock2D", "UpBlock2D")), ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3),
    "use_linear_projection": (_FLAG, False),
    "upcast_attention": (_FLAG, False),
    "sample_size": (Either(_SIDE, _NONE), None),
    **dict.fromkeys(_WITHOUT.split(), (_NONE, None)),
    **dict.fromkeys(("center_input_sample", "only_cross_attention", "resnet_skip_time_act"), (_NO, False)),
    **{key: (OneOf("default"), "default") for key in ("attention_type", "resnet_time_scale_shift")},
    **{key: (OneOf(3), 3) for key in ("conv_in_kernel", "conv_out_kernel")},
    "act_fn": (_SILU, "silu"),
    "downsample_padding": (_ONE, 1),
    "dual_cross_attention": (Either(_NO, _NONE), False),
    "flip_sin_to_cos": (_YES, True),
    "freq_shift": (OneOf(0), 0),
    "mid_block_only_cross_attention": (Either(_NONE, _NO), None),
    "mid_block_scale_factor": (_ONE, 1),
    "mid_block_type": (OneOf("UNetMidBlock2DCrossAttn"), "UNetMidBlock2DCrossAttn"),
    "norm_eps": (OneOf(1e-5), 1e-5),
    "resnet_out_scale_factor": (_ONE, 1.0),
    "time_embedding_type": (OneOf("positional"), "positional"),
    "addition_embed_type_num_heads": (ignored, 64),
    "addition_time_embed_dim": (ignored, None),
    "class_embeddings_concat": (ignored, False),
    "dropout": (ignored, 0.0),
    "projection_class_embeddings_input_dim": (ignored, None),
}
_ANY_VAE: Schema = {
    "block_out_channels": (Each(_WIDTH), [64]),
    "in_channels": (OneOf(3), 3),
    "out_channels": (OneOf(3), 3),
    "latent_channels": (OneOf(4), 4),
    "layers_per_block": (_COUNT, 1),
    "norm_num_groups": (_GROUPS, 32),
    "down_block_types": _blocks("DownEncoderBlock2D"),
    "up_block_types": _blocks("UpDecoderBlock2D"),
    "act_fn": (_SILU, "silu"),
    "mid_block_add_attention": (_FLAG, True),
    "sample_size": (_SIDE, 512),
    "scaling_factor": (Number(1e-3, 1e3), 0.18215),
}
_VAE_EXTRAS: Schema = {
    "force_upcast": (_FLAG, True),
    "latents_mean": (_NONE, None),
    "latents_std": (_NONE, None),
    "shift_factor": (Either(_NONE, OneOf(0)), None),
    "use_post_quant_conv": (_YES, True),
    "use_quant_conv": (_YES, True),
}
VAE: Schema = {
    "_class_name": (OneOf("AutoencoderKL"), "AutoencoderKL"),
    **_ANY_VAE,
    **_VAE_EXTRAS,
}
HARMONY_VAE: Schema = {
    "_class_name": (OneOf("ConditionVAE"), "ConditionVAE"),
    **_ANY_VAE,
    "additional_in_channels": (OneOf(1), 1),
    **{key: (rule, MISSING) for key, (rule, _) in _VAE_EXTRAS.items()},
}
REFINER: Schema = {
    "_class_name": (OneOf("UNet2DCustom"), "UNet2DCustom"),
    "block_out_channels": (Each(_WIDTH), [64, 128, 256, 256]),
    "in_channels": (Whole(1, 64), 7),
    "out_channels": (OneOf(3), 3),
    "layers_per_block": (_COUNT, 2),
    "attention_head_dim": (Either(_WIDTH, _NONE), None),
    "norm_num_groups": (_GROUPS, 32),
    "norm_eps": (Number(1e-12, 0.1), 1e-6),
    "downsample_padding": (OneOf(0, 1), 0),
    "down_block_types": _blocks("DownBlock2D"),
    "up_block_types": _blocks("UpBlock2D"),
    "sample_size": (_SIDE, 256),
    "act_fn": (_SILU, "silu"),
    "add_attention": (_YES, True),
    "downsample_type": (OneOf("conv"), "conv"),
    "upsample_type": (OneOf("conv"), "conv"),
    "input_residual": (_YES, True),
    "mid_block_scale_factor": (_ONE, 1),
    "resnet_time_scale_shift": (OneOf("default"), "default"),
}
COLOR_REGRESSOR: Schema = {
    "_class_name": (OneOf("ColorRegressor"), "ColorRegressor"),
    "size": (Whole(64, 512), NEEDED),
    "width": (Whole(16, 1024), NEEDED),
    "heads": (Whole(1, 16), NEEDED),
    "dropout": (Number(0, 0.9), 0.0),
    "gain": (Number(0.1, 3), 1.0),
    "lighten": (Number(0, 1), 1.0),
}
TEXT_ENCODER: Schema = {
    "vocab_size": (OneOf(49408), 49408),
    "hidden_size": (Whole(1, 8192), NEEDED),
    "intermediate_size": (Whole(1, 32768), NEEDED),
    "num_hidden_layers": (Whole(1, 64), NEEDED),
    "num_attention_heads": (Whole(1, 256), NEEDED),
    "max_position_embeddings": (Whole(1, TOKENS), 77),
    "hidden_act": (OneOf("quick_gelu", "gelu"), "quick_gelu"),
    "layer_norm_eps": (Number(1e-12, 0.1), 1e-5),
}


# What of a config's values does not go together, in words; None where they do.


def levels(config: dict) -> str | None:
    widths, groups = config["block_out_channels"], config["norm_num_groups"]
    for key, value in config.items():
        if isinstance(value, list) and len(value) != len(widths):
            return f"{key} {shown(value)}, for {len(value)} levels, but block_out_channels {widths}"
    if any(width % groups for width in widths):
        return f"block_out_channels {widths}, not all multiples of norm_num_groups {groups}"
    return None


def unet_heads(config: dict) -> str | None:
    if words := levels(config):
        return words
    widths = config["block_out_channels"]
    attending = zip(config["down_block_types"], config["up_block_types"][::-1])
    heads = each(config["attention_head_dim"], len(widths))
    for level, (names, width, head) in enumerate(zip(attending, widths, heads)):
        attends = level == len(widths) - 1 or any(name.startswith("CrossAttn") for name in names)
        if attends and width % head:
            return f"attention_head_dim {head}, the number of heads, which does not divide a width {width}"
    return None


def refiner_heads(config: dict) -> str | None:
    heads, last = config["attention_head_dim"], config["block_out_channels"][-1]
    words = f"attention_head_dim {heads}, which does not divide the last width {last}"
    return levels(config) or (words if heads and last % heads else None)


def text_heads(config: dict) -> str | None:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    return f"num_attention_heads {heads}, which does not divide hidden_size {width}" if width % heads else None
