"""Global looks of a photo: what light, camera and retoucher make of a scene. Batched torch operations, fast enough for
a training loop.

Light is handled in encoded values: for a power-law encoding x = l^(1/γ), a gain of 2^ev in linear light is one of
2^(ev/γ) on x, so exposure and white balance cost a multiplication and no power.
"""

import math
from typing import NamedTuple

import torch

from ..luma import LUMA

GAMMA = 2.2
SHOULDER = 1.6  # the encoded value that a film shoulder maps to white


class Look(NamedTuple):
    """Parameters of a look for each picture of a batch, in the order in which they are applied. `identity` leaves a
    picture as it is.

    gain: [B, 3], on encoded values. shoulder: [B], how much of a film's roll-off into white is mixed in, 0 to 1. power:
    [B], exponent. matrix: [B, 3, 3], saturation, hue and mixing of channels; rows are outputs. curve: [B, 2, 3],
    contrast (a cubic that keeps 0, ½ and 1) and lift of the middle (a parabola that keeps 0 and 1), for each channel.
    tones: [B, 2, 3], added to shadows and highlights. levels: [B, 2], black and white.
    """

    gain: torch.Tensor
    shoulder: torch.Tensor
    power: torch.Tensor
    matrix: torch.Tensor
    curve: torch.Tensor
    tones: torch.Tensor
    levels: torch.Tensor


class Draw:
    """Random numbers for a batch, one row a picture, on the generator's device."""

    def __init__(self, count: int, generator: torch.Generator):
        self.count, self.generator = count, generator

    def uniform(self, low: float = 0.0, high: float = 1.0, width: int = 1) -> torch.Tensor:
        """[B, width], evenly in [low, high)."""
        numbers = torch.rand(self.count, width, generator=self.generator, device=self.generator.device)
        return low + (high - low) * numbers

    def normal(self, deviation: float, width: int = 1) -> torch.Tensor:
        """[B, width], normal around 0."""
        numbers = torch.randn(self.count, width, generator=self.generator, device=self.generator.device)
        return deviation * numbers

    def chance(self, probability: float) -> torch.Tensor:
        """[B, 1], 1 with the probability, else 0."""
        return (self.uniform() < probability).float()


def draw(picker: Draw, strength: torch.Tensor) -> Look:
    """A random look for each picture; strength: [B, 1], 0 leaves it as it is, 1 is as strong as iHarmony4's harder
    half.
    """

    def some(probability: float, deviation: float, width: int = 1) -> torch.Tensor:
        return picker.chance(probability) * strength * picker.normal(deviation, width)

    exposure, temperature, tint = some(0.85, 1.0), some(0.7, 0.45), some(0.5, 0.15)
    stops = exposure + torch.cat([temperature / 2, tint, -temperature / 2], dim=1)
    saturation = torch.exp(some(0.6, 0.4))
    hue = some(0.2, 0.12)
    mixing = some(0.2, 0.06, 9).unflatten(1, (3, 3))
    contrast, lift = some(0.6, 0.6) + some(0.2, 0.2, 3), some(0.4, 0.35) + some(0.2, 0.15, 3)
    levels = picker.chance(0.3) * strength * torch.cat([picker.uniform(-0.1, 0.15), picker.uniform(-0.2, 0.1)], dim=1)
    return Look(
        gain=torch.exp2(stops.clamp(-3, 3) / GAMMA),
        shoulder=picker.chance(0.5)[:, 0],
        power=torch.exp2(some(0.4, 0.35).clamp(-1, 1))[:, 0],
        matrix=color_matrix(saturation, hue)
        @ (torch.eye(3, device=mixing.device) + mixing - mixing.mean(2, keepdim=True)),
        curve=torch.stack([contrast.clamp(-1, 1.2), lift.clamp(-0.9, 0.9)], dim=1),
        tones=some(0.25, 0.05, 6).unflatten(1, (2, 3)),
        levels=torch.cat([levels[:, :1], 1 + levels[:, 1:]], dim=1),
    )


def select(chosen: torch.Tensor, first: Look, second: Look) -> Look:
    """The first look for pictures where `chosen` [B, 1] is above 0, the second for the others."""
    return Look(
        *(
            torch.where((chosen > 0).view(-1, *(1,) * (one.ndim - 1)), one, other)
            for one, other in zip(first, second, strict=True)
        )
    )


def color_matrix(saturation: torch.Tensor, hue: torch.Tensor) -> torch.Tensor:
    """[B, 3, 3] that scales the chroma by `saturation` [B, 1], turns it by `hue` [B, 1] radians and keeps the luma."""
    luma = torch.tensor(LUMA, device=hue.device)
    first = torch.nn.functional.normalize(torch.tensor([1.0, -1.0, 0.0], device=hue.device), dim=0)
    second = torch.nn.functional.normalize(torch.tensor([1.0, 1.0, -2.0], device=hue.device), dim=0)
    plane = torch.stack([first, second], dim=1)  # [3, 2]: the directions that change no grey's lightness
    cosine, sine = torch.cos(hue)[..., None], torch.sin(hue)[..., None]
    turn = torch.cat([torch.cat([cosine, -sine], dim=2), torch.cat([sine, cosine], dim=2)], dim=1)
    grey = torch.ones(3, 1, device=hue.device) * luma
    chroma = torch.eye(3, device=hue.device) - grey
    turned = plane @ turn @ (plane.T @ chroma)
    turned = turned - torch.ones(3, 1, device=hue.device) * (luma @ turned)[:, None]
    return grey + saturation[..., None] * turned


def apply(image: torch.Tensor, look: Look) -> torch.Tensor:
    """The pictures [B, 3, H, W] in [0, 1] under their looks, clipped to [0, 1]."""
    size = image.shape
    x = image.flatten(2) * look.gain[..., None]
    rolled = x * (1 + x / SHOULDER**2) / (1 + x) * (1 + 1 / SHOULDER) / (1 + 1 / SHOULDER**2)
    x = torch.lerp(x, rolled, (look.shoulder * (look.gain.mean(1) > 1))[:, None, None]).clamp_(0, 1)
    bent = look.power != 1
    if bent.any():
        x[bent] = (x[bent] + 1e-4) ** look.power[bent, None, None]
    x = torch.baddbmm(torch.zeros((), device=x.device), look.matrix, x).clamp_(0, 1)
    contrast, lift = look.curve[:, 0, :, None], look.curve[:, 1, :, None]
    x = x + x * (1 - x) * (lift + contrast * (2 * x - 1))
    toned = (look.tones != 0).any(2).any(1)
    if toned.any():
        luma = torch.tensor(LUMA, device=x.device)
        light = torch.einsum("c,bcn->bn", luma, x[toned])[:, None]
        x[toned] += (1 - light) ** 2 * look.tones[toned, 0, :, None] + light**2 * look.tones[toned, 1, :, None]
    black, white = look.levels[:, :1, None], look.levels[:, 1:, None]
    return (x * (white - black) + black).clamp_(0, 1).view(size)


def dull(picker: Draw) -> Look:
    """A look with most of the chroma gone and some of the contrast, as colours borrowed from another thing often have
    (HFlickr, HCOCO).
    """
    zero, one = torch.zeros(picker.count, 1, device=picker.generator.device), 1
    exposure = picker.normal(0.5)
    temperature = picker.normal(0.25)
    stops = exposure + torch.cat([temperature / 2, picker.normal(0.08), -temperature / 2], dim=1)
    contrast, lift = -picker.uniform(0.0, 0.7), picker.normal(0.15)
    return Look(
        gain=torch.exp2(stops / GAMMA),
        shoulder=zero[:, 0],
        power=zero[:, 0] + one,
        matrix=color_matrix(picker.uniform(0.08, 0.6), picker.normal(0.15)),
        curve=torch.stack([contrast.expand(-1, 3), lift.expand(-1, 3)], dim=1),
        tones=picker.normal(0.03, 6).unflatten(1, (2, 3)),
        levels=torch.cat([picker.uniform(0.0, 0.12), picker.uniform(0.85, 1.0)], dim=1),
    )


def flat(picker: Draw) -> Look:
    """A finished photo as it may have left the camera: darker, with less contrast and less colour (HAdobe5k's real
    images).
    """
    device = picker.generator.device
    temperature = picker.normal(0.25)
    stops = -picker.uniform(0.0, 1.6) + torch.cat([temperature / 2, picker.normal(0.08), -temperature / 2], dim=1)
    contrast, lift = -picker.uniform(0.0, 0.8), picker.normal(0.15)
    return Look(
        gain=torch.exp2(stops / GAMMA),
        shoulder=torch.zeros(picker.count, device=device),
        power=torch.ones(picker.count, device=device),
        matrix=color_matrix(picker.uniform(0.45, 1.0), picker.normal(0.05)),
        curve=torch.stack([contrast.expand(-1, 3), lift.expand(-1, 3)], dim=1),
        tones=torch.zeros(picker.count, 2, 3, device=device),
        levels=torch.cat([picker.uniform(-0.02, 0.05), picker.uniform(0.8, 1.0)], dim=1),
    )


def own_color(picker: Draw, vivid: torch.Tensor, probability: float = 0.35) -> torch.Tensor:
    """[B, 3, 3]: another colour for the things themselves, hue turned by up to 144° either way and saturation by half;
    else the identity.

    vivid: [B, 1], 1 where the things are to be up to twice as colourful as they were.
    """
    chosen = picker.chance(probability)
    hue = chosen * picker.uniform(-0.8 * math.pi, 0.8 * math.pi)
    return color_matrix((1 + chosen * picker.uniform(-0.5, 0.5)) * (1 + vivid * picker.uniform(0.0, 1.2)), hue)
