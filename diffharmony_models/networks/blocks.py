"""Building blocks of the refiner. Plain torch, [B, C, H, W].

Their state-dict names are those of diffusers' blocks without a time embedding.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Level(nn.Module):
    """The residual blocks of one level, one for each input width; whoever builds it adds the samplers it has."""

    def __init__(self, in_channels: list[int], out_channels: int, norm: dict):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, out_channels, **norm) for width in in_channels)
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()


class Middle(nn.Module):
    """Residual block, self-attention (head_dim None: one head as wide as the block), residual block."""

    def __init__(self, width: int, head_dim: int | None, norm: dict):
        super().__init__()
        self.attentions = nn.ModuleList([Attention(width, head_dim or width, **norm)])
        self.resnets = nn.ModuleList(Resnet(width, width, **norm) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x)
        x = self.attentions[0](x)
        return self.resnets[1](x)


class Resnet(nn.Module):
    """Two normalised convolutions and a residual."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual."""

    def __init__(self, width: int, head_dim: int, groups: int, eps: float):
        super().__init__()
        self.heads = width // head_dim
        self.group_norm = nn.GroupNorm(groups, width, eps=eps)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, height, columns = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](h).transpose(1, 2).reshape(batch, width, height, columns)


class Downsample(nn.Module):
    """Halves both sides. padding 0: pads right and bottom by 1 itself; 1: all round."""

    def __init__(self, width: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def silu(x: torch.Tensor) -> torch.Tensor:
    """In place where no gradient needs the input: one activation less at the network's widest point."""
    return F.silu(x, inplace=not torch.is_grad_enabled())
