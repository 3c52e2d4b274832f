"""The Harmony-VAE: an SD VAE whose decoder also sees the composite (DiffHarmony++; config class `ConditionVAE`).

A second encoder looks at the composite and its mask; what it sees at each resolution is added, through 1x1 convolutions
that start at zero, to what the decoder has there. Plain torch, state-dict names of the published weights.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from ..errors import InputError
from .blocks import Downsample, Level, Middle, Upsample, silu

_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "additional_in_channels": 1,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
# Values of a config.json that this module builds; anything else would be another network.
_FIXED = {
    "act_fn": ("silu", "swish"),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
}
_EPS = 1e-6


@dataclass
class Posterior:
    """A diagonal Gaussian over unscaled latents: mean and std, [B, 4, h, w] float32."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def from_moments(cls, moments: torch.Tensor) -> "Posterior":
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """mean + std * noise; noise as mean, standard normal."""
        return self.mean + self.std * noise.to(self.mean)


@dataclass
class Condition:
    """What the conditional encoder saw: one tensor for each residual block of the decoder (finest first), one for its
    middle, and the posterior of the composite's own latent."""

    skips: list[torch.Tensor]
    middle: torch.Tensor
    posterior: Posterior


class HarmonyVAE(nn.Module):
    """SD VAE with a conditional encoder. Built by `from_config` or, at the start of a training, by `from_vae`.

    Images are [-1, 1] here, as for any VAE; latents are unscaled (divided by `scaling_factor`). `.config` is the
    dictionary of the published config.json.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        unknown = set(config) - set(_DEFAULTS)
        if unknown:
            raise InputError(f"HarmonyVAE knows no {', '.join(sorted(unknown))}; it takes {', '.join(_DEFAULTS)}.")
        config = {**_DEFAULTS, **config}
        widths = config["block_out_channels"] = list(config["block_out_channels"])
        if not widths or any(width % config["norm_num_groups"] for width in widths):
            raise InputError(f"Widths {widths} must be multiples of norm_num_groups, {config['norm_num_groups']}.")
        self.config = {
            "_class_name": "ConditionVAE",
            **config,
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        }
        latent = config["latent_channels"]
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.conditional_encoder = _ConditionalEncoder(config)
        self.latent_skip_conv = nn.Conv2d(latent, latent, 1)

    @property
    def scaling_factor(self) -> float:
        return self.config["scaling_factor"]

    @property
    def factor(self) -> int:
        """Pixels a latent, along one side."""
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    @classmethod
    def from_config(cls, config: dict) -> "HarmonyVAE":
        """Builds the network that a config.json of class ConditionVAE describes. ValueError for what it is not."""
        kind = config.get("_class_name", "ConditionVAE")
        if kind != "ConditionVAE":
            raise InputError(f"This config describes a {kind}; a Harmony-VAE's says ConditionVAE.")
        return cls._build(config)

    @classmethod
    def from_vae(cls, vae: nn.Module) -> "HarmonyVAE":
        """Starts from a plain VAE (diffusers' AutoencoderKL): its encoder and decoder, the encoder once more for the
        condition, and every way from the condition into the decoder at zero. Until trained it decodes as `vae` does."""
        model = cls._build(dict(vae.config))
        state = vae.state_dict()
        encoder = {key: value for key, value in state.items() if key.startswith("encoder.")}
        state |= {"conditional_" + key: value for key, value in encoder.items()}
        model.load_state_dict({**_zeros(model), **state}, strict=True)
        return model.eval()

    @classmethod
    def _build(cls, config: dict) -> "HarmonyVAE":
        for key, allowed in _FIXED.items():
            if key in config and config[key] not in allowed:
                raise InputError(f"Harmony-VAE config: {key} is {config[key]!r}; only {allowed[0]!r} is supported.")
        for key, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if any(name != block for name in config.get(key, ())):
                raise InputError(f"Harmony-VAE config: {key} is {config[key]}; only {block} is supported.")
        return cls(**{key: config[key] for key in _DEFAULTS if key in config})

    def encode(self, image: torch.Tensor) -> Posterior:
        """image: [B, 3, H, W] in [-1, 1], sides multiples of `factor`. Returns the posterior of its unscaled latent."""
        return Posterior.from_moments(self.quant_conv(self.encoder(image.to(self._dtype))))

    def encode_condition(self, composite: torch.Tensor, mask: torch.Tensor) -> Condition:
        """composite: [B, 3, H, W] in [-1, 1]. mask: [B, 1, H, W] in {0, 1}. Sides multiples of `factor`."""
        skips, middle, moments = self.conditional_encoder(composite.to(self._dtype), mask.to(self._dtype))
        return Condition(skips, middle, Posterior.from_moments(self.quant_conv(moments)))

    def decode(
        self, latent: torch.Tensor, condition: Condition, condition_latent: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unscaled latent [B, 4, h, w] to an image [B, 3, H, W], nominally in [-1, 1], not clamped.

        condition: of the composite that belongs to it. condition_latent: the composite's latent, [B, 4, h, w], drawn
        from `condition.posterior`; without one its mean is taken.
        """
        if condition_latent is None:
            condition_latent = condition.posterior.mean
        z = self.post_quant_conv(latent.to(self._dtype))
        z = z + self.latent_skip_conv(self.post_quant_conv(condition_latent.to(self._dtype)))
        return self.decoder(z, condition)

    @property
    def _dtype(self) -> torch.dtype:
        return self.post_quant_conv.weight.dtype


class _Encoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        widths, layers = config["block_out_channels"], config["layers_per_block"]
        groups = config["norm_num_groups"]
        norm = {"groups": groups, "eps": _EPS}
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (width, out) in enumerate(zip([widths[0], *widths], widths)):
            block = Level([width] + [out] * (layers - 1), out, norm)
            if level < len(widths) - 1:
                block.downsamplers = nn.ModuleList([Downsample(out, padding=0)])
            self.down_blocks.append(block)
        self.mid_block = Middle(widths[-1], None, norm, config["mid_block_add_attention"])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config["latent_channels"], 3, padding=1)

    def features(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields conv_in's output as it is given and then what each layer on the way down makes of it."""
        yield x
        for block in self.down_blocks:
            for layer in (*block.resnets, *block.downsamplers):
                x = layer(x)
                yield x

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(silu(self.conv_norm_out(x)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        last = deque(self.features(self.conv_in(image)), maxlen=1).pop()  # the others are freed on the way
        return self.head(self.mid_block(last))


class _ConditionalEncoder(_Encoder):
    """An encoder that also takes the mask and hands out a projection of every feature on its way."""

    def __init__(self, config: dict):
        super().__init__(config)
        widths, layers = config["block_out_channels"], config["layers_per_block"]
        self.add_conv_in = nn.Conv2d(config["additional_in_channels"], widths[0], 3, padding=1)
        # As many features as the decoder has residual blocks: layers + 1 a level. The first of a level still has the
        # width of the level above it, from whose down-sampler it comes.
        self.down_block_skip_convs = nn.ModuleList(
            nn.Conv2d(above if layer == 0 else width, width, 1)
            for above, width in zip([widths[0], *widths], widths)
            for layer in range(layers + 1)
        )
        self.mid_block_skip_conv = nn.Conv2d(widths[-1], widths[-1], 1)

    def forward(  # type: ignore[override]
        self, image: torch.Tensor, mask: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        skips = []
        for project, x in zip(self.down_block_skip_convs, self.features(self.conv_in(image) + self.add_conv_in(mask))):
            skips.append(project(x))
        x = self.mid_block(x)
        return skips, self.mid_block_skip_conv(x), self.head(x)


class _Decoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        widths, layers = config["block_out_channels"][::-1], config["layers_per_block"]
        groups = config["norm_num_groups"]
        norm = {"groups": groups, "eps": _EPS}
        self.conv_in = nn.Conv2d(config["latent_channels"], widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], None, norm, config["mid_block_add_attention"])
        self.up_blocks = nn.ModuleList()
        for level, (width, out) in enumerate(zip([widths[0], *widths], widths)):
            block = Level([width] + [out] * layers, out, norm)
            if level < len(widths) - 1:
                block.upsamplers = nn.ModuleList([Upsample(out)])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config["out_channels"], 3, padding=1)

    def forward(self, z: torch.Tensor, condition: Condition) -> torch.Tensor:
        x = self.mid_block(self.conv_in(z)) + condition.middle
        skips = iter(reversed(condition.skips))
        for block in self.up_blocks:
            # Added after each block: only there do the published skips have the decoder's widths.
            for resnet in block.resnets:
                x = resnet(x) + next(skips)
            for upsample in block.upsamplers:
                x = upsample(x)
        return self.conv_out(silu(self.conv_norm_out(x)))


def _zeros(model: HarmonyVAE) -> dict[str, torch.Tensor]:
    """Zeros for every parameter that a plain VAE does not have."""
    new = ("skip_conv", "add_conv_in")
    return {key: torch.zeros_like(value) for key, value in model.state_dict().items() if any(n in key for n in new)}
