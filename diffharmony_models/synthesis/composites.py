"""Composites of shared light: what cut and paste does to a picture, made from one real photo.

The real picture is the photo under one look. The composite's foreground has another look, drawn from the same
distribution: it brings the light of another photo along. So what tells a composite is that foreground and background do
not share their light, and not that the foreground's colours are odd for the thing. Beside plain looks there are the
ways in which iHarmony4 was made: colours transferred from another foreground, dulled colours, another retoucher's
version, and local light.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..luma import LUMA
from . import looks

KINDS = ("look", "retouch", "transfer", "dull", "none")
SHARES = (0.35, 0.2, 0.3, 0.1, 0.05)


class Pairs(NamedTuple):
    """composite, real: [B, 3, H, W] in [0, 1].

    mask: [B, 1, H, W], {0, 1}. kind: [B], index into `KINDS`. local: [B], whether light varies in it.
    """

    composite: torch.Tensor
    real: torch.Tensor
    mask: torch.Tensor
    kind: torch.Tensor
    local: torch.Tensor


def make(
    photo: torch.Tensor,
    mask: torch.Tensor,
    generator: torch.Generator,
    reference: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    shares: tuple[float, ...] = SHARES,
    local_share: float = 0.3,
    jitter: float = 0.6,
    jpeg: float = 0.5,
) -> Pairs:
    """A composite and its truth from each photo.

    photo: [B, 3, H, W] in [0, 1]. mask: [B, 1, H, W], {0, 1}. generator: on the photos' device. reference: means [B, 3]
    and covariances [B, 3, 3] of other foregrounds' colours, for `transfer`; without, plain looks take its place.
    shares: of the `KINDS`. local_share: of composites whose foreground has a second light on one side. jitter: share
    whose paste is a pixel or two wider or narrower than the mask. jpeg: share that is compressed after compositing. The
    background is the real picture's but for the compression.
    """
    picker = looks.Draw(len(photo), generator)
    kind = torch.multinomial(
        torch.tensor(shares, device=photo.device), len(photo), replacement=True, generator=generator
    )
    if reference is None:
        kind = torch.where(kind == KINDS.index("transfer"), 0, kind)

    def of(*names: str) -> torch.Tensor:
        """[B, 1]: 1 for the pictures of these kinds."""
        return sum((kind == KINDS.index(name)).float() for name in names)[:, None]

    # Lost colours can only be told from dull ones where the thing is vivid, as it is in the photos that people publish.
    vivid = of("dull") + of("transfer") * picker.chance(0.6)
    # A thing may be dark or bright by itself, or stand in the shade: it need not be as light as what is around it.
    shade = torch.exp2(picker.chance(0.4) * picker.normal(0.7).clamp(-1.5, 1.0) / looks.GAMMA)
    own = torch.bmm(looks.own_color(picker, vivid) * shade[..., None], photo.flatten(2)).view_as(photo).clamp(0, 1)
    photo = torch.where(mask > 0, own, photo)

    strength = torch.exp(0.2 + picker.normal(0.4)).clamp(0.4, 1.8)
    scene = looks.draw(picker, strength * picker.chance(0.75))
    real = looks.apply(photo, looks.select(of("retouch"), looks.flat(picker), scene))

    mild = 1 - 0.65 * of("retouch")
    light = looks.select(of("dull"), looks.dull(picker), looks.draw(picker, strength * mild * (1 - of("transfer"))))
    pasted = looks.apply(torch.where(of("dull", "transfer")[..., None, None] > 0, real, photo), light)
    faded = (
        looks.color_matrix(picker.uniform(0.3, 1.1), torch.zeros_like(strength)) * picker.uniform(0.5, 1.2)[..., None]
    )
    blend = picker.uniform(0.4, 1.0)
    if reference is not None and (lent := of("transfer")[:, 0] > 0).any():
        mean, covariance = reference[0][lent], (faded @ reference[1] @ faded.mT)[lent]
        pasted[lent] = transfer(real[lent], mask[lent], mean, covariance, blend[lent])
    local = (picker.chance(local_share) * (1 - of("none")))[:, 0] > 0
    weight, second = field(picker, *photo.shape[-2:]), looks.draw(picker, 0.7 * strength)
    if local.any():
        lit = looks.apply(pasted[local], looks.Look(*(value[local] for value in second)))
        pasted[local] = torch.lerp(pasted[local], lit, weight[local])
    pasted = torch.where(of("none")[..., None, None] > 0, real, pasted)
    pasted = _tamed(pasted, real, mask)

    edge = jittered(mask, picker, jitter)
    composite = torch.lerp(real, pasted, edge)
    compressed = (picker.chance(jpeg) > 0)[:, 0]
    if compressed.any():
        composite[compressed] = jpeg_like(composite[compressed], picker.uniform(60, 95)[compressed])
    return Pairs(composite, real, mask, kind, local)


def _tamed(pasted: torch.Tensor, real: torch.Tensor, mask: torch.Tensor, most: float = 0.25) -> torch.Tensor:
    """Where more than `most` of a foreground was clipped to black or white beyond what is in the real picture: half way
    back.
    """

    def clipped(image: torch.Tensor) -> torch.Tensor:
        coarse = image[..., ::2, ::2]  # a quarter of the pixels tells it as well
        flat = ((coarse <= 0.004) | (coarse >= 0.996)).float().mean(1, keepdim=True)
        inside = mask[..., ::2, ::2]
        return (flat * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)

    too_much = (clipped(pasted) > clipped(real) + most).float()[:, None, None, None]
    return torch.lerp(pasted, real, 0.5 * too_much)


def statistics(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means [B, 3] and covariances [B, 3, 3] of the colours [B, 3, H, W] where the mask [B, 1, H, W] is."""
    weight = mask.flatten(2) / mask.sum((1, 2, 3)).clamp(min=1)[:, None, None]
    pixels = image.flatten(2)
    mean = (pixels * weight).sum(2)
    centered = pixels - mean[..., None]
    return mean, torch.bmm(centered * weight, centered.transpose(1, 2))


def transfer(
    image: torch.Tensor, mask: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor, blend: torch.Tensor
) -> torch.Tensor:
    """The foreground's colours with the mean and covariance of others', by the Monge-Kantorovitch map (Pitié & Kokaram
    2007), `blend` [B, 1] of it.

    The map is held between a sixth and 2.5 times the original spread, so that neither texture drowns nor noise is blown
    up.
    """
    own_mean, own = statistics(image, mask)
    identity = torch.eye(3, device=image.device) * 1e-4
    values, vectors = torch.linalg.eigh(own + identity)
    root = vectors @ (values.clamp(min=1e-5).sqrt()[..., None] * vectors.mT)
    inverse = vectors @ (values.clamp(min=1e-5).rsqrt()[..., None] * vectors.mT)
    values, vectors = torch.linalg.eigh(root @ (covariance + identity) @ root)
    matrix = inverse @ (vectors @ (values.clamp(min=1e-9).sqrt()[..., None] * vectors.mT)) @ inverse
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    matrix = vectors @ (values.clamp(0.16, 2.5)[..., None] * vectors.mT)
    moved = torch.bmm(matrix, image.flatten(2) - own_mean[..., None]) + mean[..., None]
    return torch.lerp(image, moved.view_as(image).clamp(0, 1), blend[..., None, None])


def field(picker: looks.Draw, height: int, width: int) -> torch.Tensor:
    """[B, 1, H, W]: a smooth weight in [0, 1], a ramp across the picture or a soft spot in it."""
    device = picker.generator.device
    y, x = torch.linspace(-1, 1, height, device=device)[:, None], torch.linspace(-1, 1, width, device=device)[None]
    angle, place, slope = picker.uniform(0, 6.2832), picker.uniform(-0.6, 0.6, 2), picker.uniform(0.7, 2.5)
    angle, slope = angle[..., None], slope[..., None]
    ramp = 0.5 + slope * ((x - place[:, :1, None]) * torch.cos(angle) + (y - place[:, 1:, None]) * torch.sin(angle))
    spot = 1 - slope * ((x - place[:, :1, None]) ** 2 + (y - place[:, 1:, None]) ** 2)
    weight = torch.where(picker.chance(0.6)[..., None] > 0, ramp, spot).clamp(0, 1)
    return (weight * weight * (3 - 2 * weight))[:, None]


def jittered(mask: torch.Tensor, picker: looks.Draw, share: float) -> torch.Tensor:
    """The mask grown or shrunk by a pixel, or by two, on a share of the pictures; slightly soft at the edge on half of
    all.
    """
    step = picker.chance(share) * torch.where(picker.chance(0.5) > 0, 1.0, -1.0) * (1 + picker.chance(0.3))
    step = step[..., None, None]
    result = mask
    for amount in (1, 2):
        grown = F.max_pool2d(result, 3, 1, 1)
        shrunk = -F.max_pool2d(-result, 3, 1, 1)
        result = torch.where(step >= amount, grown, torch.where(step <= -amount, shrunk, result))
    soft = F.avg_pool2d(F.pad(result, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(picker.chance(0.5)[..., None, None] > 0, soft, result)


# The luminance table of the JPEG standard (ITU T.81, annex K); chroma is quantised by the same, doubled.
_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def jpeg_like(image: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """What JPEG of a quality [B, 1] (50 to 100) does to pictures [B, 3, H, W]: DCT of blocks of 8 x 8, quantise, back.

    Pictures whose sides do not divide by 8 go on beyond their edges as an encoder lets them.
    """
    device, (own_height, own_width) = image.device, image.shape[-2:]
    image = F.pad(image, (0, -own_width % 8, 0, -own_height % 8), mode="replicate")
    order = torch.arange(8, device=device, dtype=torch.float32)
    basis = torch.cos((2 * order[None] + 1) * order[:, None] * torch.pi / 16) * 0.5
    basis[0] = 8**-0.5
    to_ycc = torch.tensor([LUMA, [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], device=device)
    table = (
        torch.tensor(_TABLE, device=device, dtype=torch.float32)
        * torch.tensor([1.0, 2.0, 2.0], device=device)[:, None, None]
    )
    steps = (table * ((200 - 2 * quality) / 100)[..., None, None]).clamp(min=1)[
        :, :, None, :, None, :
    ]  # [B, 3, 1, 8, 1, 8]
    height, width = image.shape[-2:]
    x = torch.einsum("kc,bcn->bkn", to_ycc, image.flatten(2) * 255 - 128).view(-1, 3, height // 8, 8, width // 8, 8)
    x = torch.einsum("ui,bchiwj,vj->bchuwv", basis, x, basis)
    x = (x / steps).round() * steps
    x = torch.einsum("ui,bchuwv,vj->bchiwj", basis, x, basis).reshape(-1, 3, height * width)
    return ((torch.linalg.inv(to_ycc) @ x + 128) / 255).clamp(0, 1).view_as(image)[..., :own_height, :own_width]
