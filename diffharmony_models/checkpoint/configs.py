"""What a part's config may say: each key with its values and its default. Whatever else stands in it is dropped.

A config.json is as untrusted as the weights beside it, so this is the only way from one to a network, here and in
ComfyUI. Plain Python.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

NAMES = {
    "unet": "UNet",
    "vae": "VAE",
    "refiner": "refiner",
    "harmony_vae": "Harmony-VAE",
    "color_regressor": "colour regressor",
    "text_encoder": "text encoder",
}
RESOLUTIONS = range(64, 8193)
TOKENS = 1024  # the most that a null text may have
LEVELS = 8

_MISSING = object()  # a default: without the key the config says nothing of it
_NEEDED = object()  # a default: there is none


class _Wrong(Exception):
    pass


@dataclass(frozen=True)
class Whole:
    low: int
    high: int

    def __call__(self, value: Any) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise _Wrong
        return value

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Number:
    low: float
    high: float

    def __call__(self, value: Any) -> float:
        if type(value) not in (int, float) or not self.low <= value <= self.high:  # false for NaN too
            raise _Wrong
        return value

    def __str__(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


class OneOf:
    def __init__(self, *values: Any) -> None:
        self.values = values

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (str, int, float, type(None))) and value in self.values:
            return self.values[self.values.index(value)]
        raise _Wrong

    def __str__(self) -> str:
        return " or ".join(map(repr, self.values))


@dataclass(frozen=True)
class Each:
    """One value a level."""

    rule: Callable[[Any], Any]

    def __call__(self, value: Any) -> list:
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= LEVELS:
            raise _Wrong
        return [self.rule(one) for one in value]

    def __str__(self) -> str:
        return f"a list, for 1 to {LEVELS} levels, of {self.rule}"


class Either:
    def __init__(self, *rules: Callable[[Any], Any]) -> None:
        self.rules = rules

    def __call__(self, value: Any) -> Any:
        for rule in self.rules:
            try:
                return rule(value)
            except _Wrong:
                pass
        raise _Wrong

    def __str__(self) -> str:
        return ", or ".join(map(str, self.rules))


def _ignored(value: Any) -> Any:
    """For what has no say in a network of ours: whatever the file says, the default stands."""
    return value


_WIDTH, _COUNT, _GROUPS = Whole(1, 4096), Whole(1, 16), Whole(1, 512)
_NONE, _NO, _YES, _FLAG = OneOf(None), OneOf(False), OneOf(True), OneOf(False, True)
_SILU, _ONE = OneOf("silu", "swish"), OneOf(1)
_SIDE = Whole(1, RESOLUTIONS[-1])

# key: (rule, default). A default that is a function gets the values so far.
_UNET = {
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
    # ComfyUI's network has these built in, and Stable Diffusion's has no others.
    "act_fn": (_SILU, "silu"),
    "addition_embed_type": (_NONE, None),
    "attention_type": (OneOf("default"), "default"),
    "center_input_sample": (_NO, False),
    "class_embed_type": (_NONE, None),
    "conv_in_kernel": (OneOf(3), 3),
    "conv_out_kernel": (OneOf(3), 3),
    "cross_attention_norm": (_NONE, None),
    "downsample_padding": (_ONE, 1),
    "dual_cross_attention": (Either(_NO, _NONE), False),
    "encoder_hid_dim": (_NONE, None),
    "encoder_hid_dim_type": (_NONE, None),
    "flip_sin_to_cos": (_YES, True),
    "freq_shift": (OneOf(0), 0),
    "mid_block_only_cross_attention": (Either(_NONE, _NO), None),
    "mid_block_scale_factor": (_ONE, 1),
    "mid_block_type": (OneOf("UNetMidBlock2DCrossAttn"), "UNetMidBlock2DCrossAttn"),
    "norm_eps": (OneOf(1e-5), 1e-5),
    "num_attention_heads": (_NONE, None),
    "num_class_embeds": (_NONE, None),
    "only_cross_attention": (_NO, False),
    "resnet_out_scale_factor": (_ONE, 1.0),
    "resnet_skip_time_act": (_NO, False),
    "resnet_time_scale_shift": (OneOf("default"), "default"),
    "reverse_transformer_layers_per_block": (_NONE, None),
    "time_cond_proj_dim": (_NONE, None),
    "time_embedding_act_fn": (_NONE, None),
    "time_embedding_dim": (_NONE, None),
    "time_embedding_type": (OneOf("positional"), "positional"),
    "timestep_post_act": (_NONE, None),
    "addition_embed_type_num_heads": (_ignored, 64),
    "addition_time_embed_dim": (_ignored, None),
    "class_embeddings_concat": (_ignored, False),
    "dropout": (_ignored, 0.0),
    "projection_class_embeddings_input_dim": (_ignored, None),
}


def _blocks(name: str) -> tuple:
    return Each(OneOf(name)), lambda config: [name] * len(config["block_out_channels"])


_ANY_VAE = {
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
_VAE_EXTRAS = {
    "force_upcast": (_FLAG, True),
    "latents_mean": (_NONE, None),
    "latents_std": (_NONE, None),
    "shift_factor": (Either(_NONE, OneOf(0)), None),
    "use_post_quant_conv": (_YES, True),
    "use_quant_conv": (_YES, True),
}
_SCHEMAS = {
    "unet": _UNET,
    "vae": {
        "_class_name": (OneOf("AutoencoderKL"), "AutoencoderKL"),
        **_ANY_VAE,
        **_VAE_EXTRAS,
    },
    "harmony_vae": {
        "_class_name": (OneOf("ConditionVAE"), "ConditionVAE"),
        **_ANY_VAE,
        "additional_in_channels": (OneOf(1), 1),
        **{key: (rule, _MISSING) for key, (rule, _) in _VAE_EXTRAS.items()},
    },
    "refiner": {
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
    },
    "color_regressor": {
        "_class_name": (OneOf("ColorRegressor"), "ColorRegressor"),
        "size": (Whole(64, 512), _NEEDED),
        "width": (Whole(16, 1024), _NEEDED),
        "heads": (Whole(1, 16), _NEEDED),
        "dropout": (Number(0, 0.9), 0.0),
        "gain": (Number(0.1, 3), 1.0),
    },
    "text_encoder": {
        "vocab_size": (OneOf(49408), 49408),
        "hidden_size": (Whole(1, 8192), _NEEDED),
        "intermediate_size": (Whole(1, 32768), _NEEDED),
        "num_hidden_layers": (Whole(1, 64), _NEEDED),
        "num_attention_heads": (Whole(1, 256), _NEEDED),
        "max_position_embeddings": (Whole(1, TOKENS), 77),
        "hidden_act": (OneOf("quick_gelu", "gelu"), "quick_gelu"),
        "layer_norm_eps": (Number(1e-12, 0.1), 1e-5),
    },
}


def clean(kind: str, config: dict, where: object = None, found: dict | None = None) -> dict:
    """The config with the keys that a network of this kind is built by, and no others: given, else found, else default.

    found: what the weights' shapes say. where: named in the InputError for a value that is none of the allowed.
    """
    result: dict[str, Any] = {}
    for key, (rule, default) in _SCHEMAS[kind].items():
        value = (found or {}).get(key, default(result) if callable(default) else default)
        if rule is not _ignored:
            value = config.get(key, value)
        if value is _NEEDED:
            raise InputError(f"{prefix(where, kind)}'s config says no {key}. {_ADVICE}")
        if value is _MISSING:
            continue
        try:
            result[key] = rule(value)
        except _Wrong:
            raise InputError(
                f"{prefix(where, kind)}'s config says {key} {shown(value)}; expected {rule}. {_ADVICE}"
            ) from None
    version = config.get("_diffusers_version")
    if isinstance(version, str) and len(version) <= 32:
        result["_diffusers_version"] = version
    return result


def check_together(kind: str, config: dict, where: object = None) -> None:
    """InputError where a clean config's values do not go together."""

    def refuse(words: str) -> None:
        raise InputError(f"{prefix(where, kind)}'s config says {words}. {_ADVICE}")

    if kind == "color_regressor":
        return
    if kind == "text_encoder":
        if config["hidden_size"] % config["num_attention_heads"]:
            refuse(
                f"num_attention_heads {config['num_attention_heads']}, which does not divide hidden_size "
                f"{config['hidden_size']}"
            )
        return
    widths = config["block_out_channels"]
    for key, value in config.items():
        if isinstance(value, list) and len(value) != len(widths):
            refuse(f"{key} {shown(value)}, for {len(value)} levels, but block_out_channels {widths}")
    groups = config["norm_num_groups"]
    if any(width % groups for width in widths):
        refuse(f"block_out_channels {widths}, not all multiples of norm_num_groups {groups}")
    heads = config.get("attention_head_dim")
    if kind == "unet":
        attending = zip(config["down_block_types"], config["up_block_types"][::-1])
        last = len(widths) - 1
        for level, (names, width, head) in enumerate(zip(attending, widths, each(heads, len(widths)))):
            if width % head and (level == last or any(name.startswith("CrossAttn") for name in names)):
                refuse(f"attention_head_dim {head}, the number of heads, which does not divide a width {width}")
    if kind == "refiner" and heads and widths[-1] % heads:
        refuse(f"attention_head_dim {heads}, which does not divide the last width {widths[-1]}")


def resolution(value: Any, where: object) -> int:
    """A checkpoint's own resolution, from its metadata. InputError for what is no such number."""
    text = value if isinstance(value, str) else str(value)
    plain = text.isascii() and text.isdecimal() and len(text) <= 5
    if not plain or int(text) not in RESOLUTIONS:
        raise InputError(
            f'{where}: resolution "{shown(text)}" is no number of pixels from {RESOLUTIONS[0]} to {RESOLUTIONS[-1]}. '
            "Get or convert it again."
        )
    return int(text)


def each(value: Any, levels: int) -> list:
    """One value a level, of a setting that may be one for all."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * levels


def shown(value: Any) -> str:
    """A value that came from a file, for a message: printable and not longer than a line."""
    try:
        text = repr(value)[1:-1] if isinstance(value, str) else repr(value)
    except RecursionError:
        text = "lists within lists"
    return text if len(text) <= 80 else f"{text[:60]}…"


def few(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def prefix(where: object, kind: str) -> str:
    return f"The {NAMES[kind]}" if where is None else f"{where}: the {NAMES[kind]}"


_ADVICE = "Use the config.json that belongs to these weights."
