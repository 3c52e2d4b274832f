"""Stage 2: the residual UNet that refines a harmonized image at the output resolution (DiffHarmony, arXiv 2404.06139).

Plain torch. State-dict names are those of diffusers' `UNet2DModel` without the time embedding, so that published
weights load strictly.
"""

from typing import Any

import torch
import torch.nn as nn

from .. import geometry
from ..errors import InputError
from .blocks import Downsample, Level, Middle, Upsample, silu

# What each number of input channels means, in order.
INPUTS = {3: ("harmonized",), 4: ("harmonized", "mask"), 7: ("harmonized", "mask", "composite")}

# Values of a published config.json that this module builds; anything else would be another network.
_FIXED = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "input_residual": (True,),
    "mid_block_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
}


class Refiner(nn.Module):
    """Residual UNet: clamp(first three input channels + unet(input), -1, 1).

    in_channels: 7 (harmonized, mask, composite), 4 (harmonized, mask) or 3 (harmonized). block_out_channels: one width
    a level, multiples of norm_num_groups. layers_per_block: residual blocks a level on the way down (one more going
    up). attention_head_dim: width of one head of the middle block's attention; None = a single head as wide as the
    block. downsample_padding: 0 pads right and bottom by 1, as published; 1 pads all round. `.config` is the dictionary
    of the published config.json.
    """

    def __init__(
        self,
        in_channels: int = 7,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 256),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        attention_head_dim: int | None = None,
        downsample_padding: int = 0,
        sample_size: int = 256,
    ):
        super().__init__()
        widths = tuple(block_out_channels)
        if in_channels not in INPUTS or out_channels != 3:
            raise InputError(
                f"A refiner has 3, 4 or 7 input channels and 3 output channels, not {in_channels} and {out_channels}."
            )
        if not widths or layers_per_block < 1 or downsample_padding not in (0, 1):
            raise InputError(
                f"A refiner needs at least one level and one layer and a down-sampling padding of 0 or 1; "
                f"got widths {widths}, {layers_per_block} layers, padding {downsample_padding}."
            )
        if any(width % norm_num_groups for width in widths):
            raise InputError(f"Widths {widths} must be multiples of norm_num_groups, {norm_num_groups}.")
        if attention_head_dim is not None and widths[-1] % attention_head_dim:
            raise InputError(f"attention_head_dim {attention_head_dim} must divide the last width, {widths[-1]}.")
        levels = len(widths)
        self.config: dict[str, Any] = {
            "_class_name": "UNet2DCustom",
            "act_fn": "silu",
            "add_attention": True,
            "attention_head_dim": attention_head_dim,
            "block_out_channels": list(widths),
            "down_block_types": ["DownBlock2D"] * levels,
            "downsample_padding": downsample_padding,
            "downsample_type": "conv",
            "in_channels": in_channels,
            "input_residual": True,
            "layers_per_block": layers_per_block,
            "mid_block_scale_factor": 1,
            "norm_eps": norm_eps,
            "norm_num_groups": norm_num_groups,
            "out_channels": out_channels,
            "resnet_time_scale_shift": "default",
            "sample_size": sample_size,
            "up_block_types": ["UpBlock2D"] * levels,
            "upsample_type": "conv",
        }
        self.factor = 2 ** (levels - 1)

        norm = {"groups": norm_num_groups, "eps": norm_eps}
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, out in enumerate(widths):
            last = level == levels - 1
            block = Level([width] + [out] * (layers_per_block - 1), out, norm)
            skips += [out] * layers_per_block
            if not last:
                block.downsamplers = nn.ModuleList([Downsample(out, downsample_padding)])
                skips.append(out)
            self.down_blocks.append(block)
            width = out

        self.mid_block = Middle(width, attention_head_dim, norm)

        self.up_blocks = nn.ModuleList()
        for level, out in enumerate(reversed(widths)):
            inputs = []
            for _ in range(layers_per_block + 1):
                inputs.append(width + skips.pop())
                width = out
            block = Level(inputs, out, norm)
            if level < levels - 1:
                block.upsamplers = nn.ModuleList([Upsample(out)])
            self.up_blocks.append(block)

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    @classmethod
    def from_config(cls, config: dict) -> "Refiner":
        """Builds the network that a config.json of class UNet2DCustom describes. ValueError for what it is not."""
        kind = config.get("_class_name", "UNet2DCustom")
        if kind != "UNet2DCustom":
            raise InputError(f"This config describes a {kind}; a refiner's says UNet2DCustom.")
        for key, allowed in _FIXED.items():
            if key in config and config[key] not in allowed:
                raise InputError(f"Refiner config: {key} is {config[key]!r}; only {allowed[0]!r} is supported.")
        for key, block in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
            if any(name != block for name in config.get(key, ())):
                raise InputError(f"Refiner config: {key} is {config[key]}; only {block} is supported.")
        known = [
            "in_channels",
            "out_channels",
            "block_out_channels",
            "layers_per_block",
            "norm_num_groups",
            "norm_eps",
            "attention_head_dim",
            "downsample_padding",
            "sample_size",
        ]
        return cls(**{key: config[key] for key in known if key in config})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, in_channels, H, W], images in [-1, 1], mask in {0, 1}, stacked as `INPUTS` says; sides multiples of
        2 ** (levels - 1). Returns the refined image, [B, 3, H, W] in [-1, 1], in x's dtype."""
        residual = self.residual(x.to(self.conv_in.weight.dtype))
        return torch.clamp(x[:, :3] + residual.to(x.dtype), -1, 1)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """The UNet alone: [B, in_channels, H, W] to what is added to the harmonized image, [B, 3, H, W]."""
        height, width = x.shape[-2:]
        if x.shape[1] != self.config["in_channels"] or height % self.factor or width % self.factor:
            raise InputError(
                f"The refiner takes {self.config['in_channels']} channels and sides that divide by {self.factor}, not "
                f"{list(x.shape)}; `refine` stacks and pads."
            )
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for resnet in block.resnets:
                x = resnet(x)
                skips.append(x)
            for downsample in block.downsamplers:
                x = downsample(x)
                skips.append(x)
        x = self.mid_block(x)
        for block in self.up_blocks:
            for resnet in block.resnets:
                x = resnet(torch.cat([x, skips.pop()], dim=1))
            for upsample in block.upsamplers:
                x = upsample(x)
        return self.conv_out(silu(self.conv_norm_out(x)))


def refine(refiner: Refiner, harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Refines a harmonized image at its own size; the background is not put back (`geometry.paste` does that).

    harmonized, composite: [B, 3, H, W] in [0, 1], the same size, any sides. mask: [B, 1, H, W] or [1, 1, H, W], made
    binary here. Returns [B, 3, H, W] in [0, 1]. Raises ValueError when sizes or batches differ.
    """
    composite, mask = geometry.match(composite, mask)
    if harmonized.shape != composite.shape:
        raise InputError(
            f"Harmonized image and composite must have the same shape. {list(harmonized.shape)} != "
            f"{list(composite.shape)}. Resize the harmonized image to the composite first."
        )
    x = stack(harmonized, composite, mask, refiner.config["in_channels"])
    refined = geometry.crop(refiner(geometry.pad(x, refiner.factor)), harmonized.shape[-2:])
    return (refined + 1) / 2


def stack(harmonized: torch.Tensor, composite: torch.Tensor, mask: torch.Tensor, in_channels: int) -> torch.Tensor:
    """The refiner's input: images [B, 3, H, W] from [0, 1] to [-1, 1], the mask [B, 1, H, W] binarised, concatenated
    as `INPUTS[in_channels]` says."""
    parts = {"harmonized": harmonized * 2 - 1, "mask": geometry.binarize(mask), "composite": composite * 2 - 1}
    return torch.cat([parts[name].to(harmonized.dtype) for name in INPUTS[in_channels]], dim=1)
