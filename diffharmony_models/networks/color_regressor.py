"""The colour regressor: looks at a small copy of a composite and says how the foreground's colours must change.

Features of EfficientNet-lite0 (arXiv 1905.11946, pretrained on ImageNet, its normalisations folded into its
convolutions) tell what things are in the picture. They are averaged over foreground and background and attend from one
to the other; a head answers with a quadratic colour map for the whole foreground, and a second one with a smooth field
of gains and offsets for local light. Both are applied to the original's own pixels, at any size: no detail can be lost,
and the same input gives the same output.

The idea of regressing a colour transform from pretrained features is that of Harmonizer (arXiv 2207.01322) and PCT-Net
(CVPR 2023).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..luma import LUMA

# (expansion, kernel, stride, width, repeats) of EfficientNet-lite0's stages after its 32-wide stem.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM = 32
TAPS = (1, 2, 4, 6)  # the stages whose output is read: strides 4, 8, 16, 32
MONOMIALS = 10  # 1, r, g, b, r², g², b², rg, rb, gb
LOCAL = 6  # a gain and an offset for each channel
BINS = 8  # of the colour histograms
HEAD_WIDTH = 32  # of the attention
CLEARLY = 0.05  # of the range from black to white; a change of the foreground's mean that anyone sees


class ColorChange(NamedTuple):
    """How a foreground's colours change, for pixels in [0, 1] of any size.

    curve: [B, 10, 3], weights of (1, r, g, b, r², g², b², rg, rb, gb) that are added to (r, g, b). field: [B, 6, h, w],
    three gains and three offsets (added likewise) at the centres of a grid that covers the picture.
    """

    curve: torch.Tensor
    field: torch.Tensor


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which the pretrained weights expect: more on the right and the
    bottom.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            pads += [total // 2, total - total // 2]
        if len(set(pads)) == 1:
            return F.conv2d(x, self.weight, self.bias, self.stride, pads[0], 1, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381): widen, filter each channel, narrow."""

    def __init__(self, width: int, out: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        inner = width * expansion
        self.expand = Convolution(width, inner, 1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = Convolution(inner, out, 1)
        self.residual = stride == 1 and width == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Backbone(nn.Module):
    """EfficientNet-lite0 without its classifier. [B, 3, H, W] in [0, 1] to the outputs of the stages `TAPS`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        width, stages = STEM, []
        for expansion, kernel, stride, out, repeats in STAGES:
            blocks = []
            for number in range(repeats):
                blocks.append(InvertedResidual(width, out, expansion, kernel, stride if number == 0 else 1))
                width = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: torch.Tensor, frozen: int = 0) -> list[torch.Tensor]:
        """frozen: so many stages, and the stem, are run without gradients."""
        found = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x = F.relu6(self.stem((image * 255 - 127) / 128))
        for number, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= frozen):
                x = stage(x)
            if number in TAPS:
                found.append(x)
        return found


class ColorRegressor(nn.Module):
    """Composite and mask to a `ColorChange`. Deterministic.

    Args:
        size: side of the square that the network looks at, in pixels; a picture of any size and shape is scaled to it.
        width: of the hidden layers.
        heads: of the attention from foreground to background.
        dropout: on the pooled features, in training.
        gain: how much of the predicted change is made.
        lighten: of that, the share that is made where it would make the foreground clearly lighter. What is lit wrongly
            against the light looks far worse than what is left a little dark.
    """

    def __init__(
        self,
        size: int = 160,
        width: int = 256,
        heads: int = 4,
        dropout: float = 0.2,
        gain: float = 1.0,
        lighten: float = 1.0,
    ):
        super().__init__()
        self.config = {
            "_class_name": "ColorRegressor",
            "size": size,
            "width": width,
            "heads": heads,
            "dropout": dropout,
            "gain": gain,
            "lighten": lighten,
        }
        self.size, self.heads, self.gain, self.lighten = size, heads, gain, lighten
        self.backbone = Backbone()
        widths = [STAGES[tap][3] for tap in TAPS]
        self.query, self.key = (
            Convolution(widths[2], HEAD_WIDTH * heads, 1),
            Convolution(widths[2], HEAD_WIDTH * heads, 1),
        )
        pooled = 2 * sum(widths) + 2 * (3 + 6 + 3 * BINS) + 6 * heads
        self.normalize = nn.LayerNorm(pooled)
        self.hidden = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(pooled, width * 3 // 2),
            nn.GELU(),
            nn.Linear(width * 3 // 2, width),
            nn.GELU(),
        )
        self.curve = nn.Linear(width, 3 * MONOMIALS)
        self.narrow = Convolution(widths[3], 64, 1)
        self.context = nn.Linear(width, 64)
        self.local = Convolution(widths[2] + 64 + 6 * heads + 4, 96, 3)
        self.field = Convolution(96, LOCAL, 3)
        for last in (self.curve, self.field):  # begins at "no change"
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @classmethod
    def from_config(cls, config: dict) -> "ColorRegressor":
        """The network that a clean config describes."""
        return cls(**{key: value for key, value in config.items() if not key.startswith("_")})

    def forward(self, composite: torch.Tensor, mask: torch.Tensor, frozen: int = 0) -> ColorChange:
        """composite: [B, 3, S, S] in [0, 1]; mask: [B, 1, S, S] in [0, 1]. See `predict` for pictures of any size."""
        taps = self.backbone(composite, frozen)
        with torch.autocast(composite.device.type, enabled=False):
            taps = [tap.float() for tap in taps]
            pooled = []
            for tap in taps:
                inside = F.adaptive_avg_pool2d(mask, tap.shape[-2:])
                pooled += [weighted_mean(tap, inside), weighted_mean(tap, 1 - inside)]
            inside = F.adaptive_avg_pool2d(mask, taps[2].shape[-2:])
            for weight in (mask, 1 - mask):
                pooled += color_statistics(composite, weight)
            colors = pooled_colors(composite, mask, inside)
            seen = self._attend(taps[2], inside, colors)
            pooled.append(weighted_mean(seen, inside))
            hidden = self.hidden(self.normalize(torch.cat(pooled, dim=1)))
            curve = self.curve(hidden).unflatten(1, (MONOMIALS, 3))
            wide = F.interpolate(self.narrow(taps[3]), taps[2].shape[-2:], mode="bilinear", align_corners=False)
            wide = F.relu(wide + self.context(hidden)[..., None, None])
            local = torch.cat([taps[2], wide, seen, colors[:, :3], inside], dim=1)
            field = self.field(F.relu(self.local(local)))
            change = ColorChange(curve * self.gain, field * self.gain)
            return change if self.lighten == 1 else self._cautious(change, composite, mask)

    def _cautious(self, change: ColorChange, composite: torch.Tensor, mask: torch.Tensor) -> ColorChange:
        """The change, held back as far as it would make the foreground lighter on the whole."""
        lighter = weighted_mean(apply_change(composite, change).clamp(0, 1) - composite, mask)
        lighter = lighter @ torch.tensor(LUMA, device=lighter.device)
        share = 1 - (1 - self.lighten) * (lighter / CLEARLY).clamp(0, 1)
        return ColorChange(change.curve * share[:, None, None], change.field * share[:, None, None, None])

    def _attend(self, features: torch.Tensor, inside: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        """[B, 6 heads, h, w]: at each place, the background's colours at places that look alike, and how far its own
        colours are from them.
        """
        query, key = (
            layer(features).flatten(2).unflatten(1, (self.heads, HEAD_WIDTH)) for layer in (self.query, self.key)
        )
        scores = torch.einsum("bhcq,bhck->bhqk", query, key) * HEAD_WIDTH**-0.5
        outside = (1 - inside).flatten(2)[:, :, None]  # [B, 1, 1, k]
        weights = F.softmax(scores + torch.log(outside + 1e-4), dim=-1)
        values = colors[:, 3:].flatten(2)
        seen = torch.einsum("bhqk,bck->bhcq", weights, values)
        away = colors[:, :3].flatten(2)[:, None] - seen
        return torch.cat([seen, away], dim=2).flatten(1, 2).unflatten(2, features.shape[-2:])


def weighted_mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] and [B, 1, h, w] in [0, 1] to [B, C]; all but 0 where the weight is nowhere."""
    return (values * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-3)


def color_statistics(image: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Of the colours of [B, 3, H, W] where the weight is: mean [B, 3], spread and correlation [B, 6], soft histograms
    [B, 3 * BINS].
    """
    image, weight = F.avg_pool2d(image, 2), F.avg_pool2d(weight, 2)
    mean = weighted_mean(image, weight)
    centered = image - mean[..., None, None]
    pairs = torch.cat([centered * centered, centered * centered.roll(1, 1)], dim=1)
    second = weighted_mean(pairs, weight)
    spread = (second[:, :3] + 1e-5).sqrt()
    related = second[:, 3:] / (spread * spread.roll(1, 1))
    places = torch.arange(BINS, device=image.device) / (BINS - 1)
    bins = F.relu(1 - (image[:, :, None] - places[:, None, None]).abs() * (BINS - 1)).flatten(1, 2)
    return [mean, torch.cat([spread, related], dim=1), weighted_mean(bins, weight)]


def pooled_colors(image: torch.Tensor, mask: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """[B, 6, h, w]: at each place of the coarse grid the mean colour of the foreground's pixels there, and of the
    background's.
    """
    size = inside.shape[-2:]
    front = F.adaptive_avg_pool2d(image * mask, size) / (inside + 1e-3)
    back = F.adaptive_avg_pool2d(image * (1 - mask), size) / (1 - inside + 1e-3)
    return torch.cat([front, back], dim=1)


def monomials(image: torch.Tensor) -> torch.Tensor:
    """[B, 3, ...] to [B, 10, ...]: 1, r, g, b, r², g², b², rg, rb, gb."""
    red, green, blue = image.unbind(1)
    return torch.stack(
        [
            torch.ones_like(red),
            red,
            green,
            blue,
            red * red,
            green * green,
            blue * blue,
            red * green,
            red * blue,
            green * blue,
        ],
        dim=1,
    )


def apply_change(image: torch.Tensor, change: ColorChange) -> torch.Tensor:
    """The whole picture [B, 3, H, W] in [0, 1] under the change, not clipped."""
    added = torch.einsum("bmc,bmhw->bchw", change.curve, monomials(image))
    field = F.interpolate(change.field, image.shape[-2:], mode="bilinear", align_corners=False)
    return image + added + image * field[:, :3] + field[:, 3:]


def load_pretrained(backbone: Backbone, state: dict[str, torch.Tensor]) -> None:
    """Copies ImageNet weights in the names of the package efficientnet-lite-pytorch, the batch normalisations folded in
    (eps 1e-3).
    """

    def fold(convolution: Convolution, conv: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
        convolution.weight.data.copy_(state[f"{conv}.weight"] * scale[:, None, None, None])
        convolution.bias.data.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

    fold(backbone.stem, "_conv_stem", "_bn0")
    blocks = [block for stage in backbone.stages for block in stage]
    for number, block in enumerate(blocks):
        name = f"_blocks.{number}"
        if block.expand is not None:
            fold(block.expand, f"{name}._expand_conv", f"{name}._bn0")
        fold(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        fold(block.project, f"{name}._project_conv", f"{name}._bn2")
