"""The Harmony-VAE: an SD VAE whose decoder also sees the composite (DiffHarmony++; config class `ConditionVAE`).

A second encoder looks at the composite and its mask; what it sees at each resolution is added, through 1x1 convolutions
that start at zero, to what the decoder has there. State-dict names of the published weights. For the command line and
the training, which have diffusers; no node imports this.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution, Encoder

# What a config.json may choose. The rest is fixed, and checked by `checkpoint.configs` where it comes from a file.
_KEYS = (
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "mid_block_add_attention",
    "sample_size",
    "scaling_factor",
)


@dataclass
class Condition:
    """What the conditional encoder saw: one tensor for each residual block of the decoder (finest first), one for its
    middle, and the posterior of the composite's own latent."""

    skips: list[torch.Tensor]
    middle: torch.Tensor
    posterior: DiagonalGaussianDistribution


class HarmonyVAE(AutoencoderKL):
    """diffusers' AutoencoderKL with a conditional encoder.

    block_out_channels: one width a level, multiples of norm_num_groups. config: as AutoencoderKL's. Images are [-1, 1]
    here, as for any VAE; latents are unscaled (divided by `config.scaling_factor`).
    """

    def __init__(
        self, block_out_channels: Sequence[int] = (128, 256, 512, 512), layers_per_block: int = 2, **config: Any
    ) -> None:
        levels = len(block_out_channels)
        super().__init__(
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            **config,
        )
        self.register_to_config(additional_in_channels=1)
        self.conditional_encoder = _ConditionalEncoder(self.config)
        self.latent_skip_conv = nn.Conv2d(4, 4, 1)

    @classmethod
    def from_config(cls, config: dict) -> "HarmonyVAE":
        """Builds the network that a checked config.json describes, of class ConditionVAE or of a plain VAE."""
        return cls(**{key: config[key] for key in _KEYS if key in config})

    @classmethod
    def from_vae(cls, vae: AutoencoderKL) -> "HarmonyVAE":
        """Starts from a plain VAE: its encoder and decoder, the encoder once more for the condition, and every way from
        the condition into the decoder at zero. Until trained it decodes as `vae` does."""
        model = cls.from_config(vae.config)
        state = vae.state_dict()
        state |= {f"conditional_{key}": value for key, value in state.items() if key.startswith("encoder.")}
        new = {key: torch.zeros_like(value) for key, value in model.state_dict().items() if key not in state}
        model.load_state_dict(state | new, strict=True)
        return model.eval()

    def to_json_string(self) -> str:
        """The config, under the published class name."""
        return json.dumps({**json.loads(super().to_json_string()), "_class_name": "ConditionVAE"})

    def encode_condition(self, composite: torch.Tensor, mask: torch.Tensor) -> Condition:
        """composite: [B, 3, H, W] in [-1, 1]. mask: [B, 1, H, W] in {0, 1}. Sides multiples of 2 ** (levels - 1)."""
        skips, middle, moments = self.conditional_encoder(composite.to(self.dtype), mask.to(self.dtype))
        return Condition(skips, middle, DiagonalGaussianDistribution(self.quant_conv(moments)))

    def decode(
        self, latent: torch.Tensor, condition: Condition, condition_latent: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unscaled latent [B, 4, h, w] to an image [B, 3, H, W], nominally in [-1, 1], not clamped.

        condition: of the composite that belongs to it. condition_latent: the composite's latent, [B, 4, h, w], drawn
        from `condition.posterior`; without one its mean is taken.
        """
        if condition_latent is None:
            condition_latent = condition.posterior.mean
        z = self.post_quant_conv(latent.to(self.dtype))
        z = z + self.latent_skip_conv(self.post_quant_conv(condition_latent.to(self.dtype)))
        decoder, skips = self.decoder, iter(reversed(condition.skips))
        x = decoder.mid_block(decoder.conv_in(z)) + condition.middle
        for block in decoder.up_blocks:
            # Added after each block: only there do the published skips have the decoder's widths.
            for resnet in block.resnets:
                x = resnet(x, temb=None) + next(skips)
            for upsample in block.upsamplers or ():
                x = upsample(x)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))


class _ConditionalEncoder(Encoder):
    """An encoder that also takes the mask and hands out a projection of every feature on its way."""

    def __init__(self, config: Any) -> None:
        widths, layers = config.block_out_channels, config.layers_per_block
        super().__init__(
            out_channels=config.latent_channels,
            down_block_types=config.down_block_types,
            block_out_channels=widths,
            layers_per_block=layers,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_block_add_attention,
        )
        self.add_conv_in = nn.Conv2d(1, widths[0], 3, padding=1)
        # As many features as the decoder has residual blocks: layers + 1 a level. The first of a level still has the
        # width of the level above it, from whose down-sampler it comes.
        self.down_block_skip_convs = nn.ModuleList(
            nn.Conv2d(above if layer == 0 else width, width, 1)
            for above, width in zip([widths[0], *widths], widths)
            for layer in range(layers + 1)
        )
        self.mid_block_skip_conv = nn.Conv2d(widths[-1], widths[-1], 1)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """[B, 3, H, W] and [B, 1, H, W] to the skips, the middle's skip and the latent's moments [B, 8, h, w]."""
        x = self.conv_in(image) + self.add_conv_in(mask)
        project = iter(self.down_block_skip_convs)
        skips = [next(project)(x)]
        for block in self.down_blocks:
            for resnet in block.resnets:
                x = resnet(x, temb=None)
                skips.append(next(project)(x))
            for downsample in block.downsamplers or ():
                x = downsample(x)
                skips.append(next(project)(x))
        x = self.mid_block(x)
        return skips, self.mid_block_skip_conv(x), self.conv_out(self.conv_act(self.conv_norm_out(x)))
