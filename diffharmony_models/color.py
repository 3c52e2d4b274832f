"""Colour spaces and the classic, statistics-based colour transfers.

Two layers. Functions on pixels take and return numpy float32 arrays of shape (..., 3) (colour spaces) or (N, 3) (transfers); RGB is
sRGB in [0, 1] unless said. `transfer_colors` and `reinhard` work on whole pictures: torch, BCHW in [0, 1], with masks.

The four transfers are those with which iHarmony4's HCOCO and HFlickr were made: Reinhard et al. 2001 (mean and deviation),
Xiao & Ma 2006 (covariance), Fecker et al. 2008 (cumulative histograms), Pitié et al. 2005 (iterative distribution transfer); and
Pitié & Kokaram 2007 (the linear Monge-Kantorovitch map), the covariance transfer that moves colours least.
"""

from __future__ import annotations

import numpy as np
import torch

from .errors import InputError

F = np.float32
LUMA = np.array([0.299, 0.587, 0.114], F)

# sRGB primaries, white D65 (IEC 61966-2-1).
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _XYZ.sum(1)
_TO_XYZ = (_XYZ / _WHITE[:, None]).T.astype(F)
_FROM_XYZ = np.linalg.inv(_XYZ / _WHITE[:, None]).T.astype(F)
_F_TO_LAB = np.array([[0, 500, 0], [116, -500, 200], [0, 0, -200]], F)
_LAB_TO_F = np.linalg.inv(_F_TO_LAB.astype(float)).astype(F)

# ITU-R BT.601, full range, as in JPEG.
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_TO_YCBCR = _YCBCR.T.astype(F)
_FROM_YCBCR = np.linalg.inv(_YCBCR).T.astype(F)
_HALF = np.array([0, 0.5, 0.5], F)

# Ruderman's l-alpha-beta over LMS, with the matrices of Reinhard et al. 2001.
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_OPPONENT = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
_TO_LMS, _FROM_LMS = _LMS.T.astype(F), np.linalg.inv(_LMS).T.astype(F)
_TO_OPPONENT, _FROM_OPPONENT = _OPPONENT.T.astype(F), np.linalg.inv(_OPPONENT).T.astype(F)
_DARKEST = F(1 / 255)  # keeps the logarithm finite; one step of eight bits


def srgb_to_linear(pixels):
    """sRGB in [0, 1] to linear light in [0, 1]; negative values are taken as 0. Any shape, float32."""
    pixels = np.maximum(np.asarray(pixels, F), 0)
    return np.where(pixels <= F(0.04045), pixels * F(1 / 12.92), ((pixels + F(0.055)) * F(1 / 1.055)) ** F(2.4))


def linear_to_srgb(pixels):
    """Linear light to sRGB, the inverse of `srgb_to_linear`; values above 1 stay above 1. Any shape, float32."""
    pixels = np.maximum(np.asarray(pixels, F), 0)
    return np.where(pixels <= F(0.0031308), pixels * F(12.92), F(1.055) * pixels ** F(1 / 2.4) - F(0.055))


def rgb_to_lab(pixels):
    """sRGB (..., 3) to CIE Lab, white D65: L in [0, 100], a and b about [-110, 110] (CIE 15:2004)."""
    xyz = srgb_to_linear(pixels) @ _TO_XYZ
    curve = np.where(xyz > F(216 / 24389), np.maximum(xyz, 0) ** F(1 / 3), xyz * F(841 / 108) + F(4 / 29))
    lab = curve @ _F_TO_LAB
    lab[..., 0] -= 16
    return lab


def lab_to_rgb(pixels):
    """CIE Lab (..., 3) to sRGB, the inverse of `rgb_to_lab`. Colours outside sRGB come out below 0 (clipped) or above 1."""
    lab = np.array(pixels, F)
    lab[..., 0] += 16
    curve = lab @ _LAB_TO_F
    xyz = np.where(curve > F(6 / 29), curve * curve * curve, (curve - F(4 / 29)) * F(108 / 841))
    return linear_to_srgb(xyz @ _FROM_XYZ)


def rgb_to_ycbcr(pixels):
    """sRGB (..., 3) to full-range YCbCr (BT.601, as in JPEG), all in [0, 1] with grey at Cb = Cr = 0.5."""
    return np.asarray(pixels, F) @ _TO_YCBCR + _HALF


def ycbcr_to_rgb(pixels):
    """Full-range YCbCr (..., 3) to sRGB, the inverse of `rgb_to_ycbcr`."""
    return (np.asarray(pixels, F) - _HALF) @ _FROM_YCBCR


def rgb_to_lalphabeta(pixels):
    """sRGB (..., 3) to Ruderman's decorrelated log space over LMS (equations 1-6 of Reinhard et al. 2001, natural logarithm)."""
    return np.log(np.maximum(srgb_to_linear(pixels) @ _TO_LMS, _DARKEST)) @ _TO_OPPONENT


def lalphabeta_to_rgb(pixels):
    """The inverse of `rgb_to_lalphabeta`, but for colours darker than 1/255 in linear light."""
    return linear_to_srgb(np.exp(np.minimum(np.asarray(pixels, F) @ _FROM_OPPONENT, F(2))) @ _FROM_LMS)


def _same(pixels):
    return np.asarray(pixels, F)


SPACES = {
    "rgb": (_same, _same),
    "lab": (rgb_to_lab, lab_to_rgb),
    "ycbcr": (rgb_to_ycbcr, ycbcr_to_rgb),
    "lalphabeta": (rgb_to_lalphabeta, lalphabeta_to_rgb),
}


def saturate(pixels, factor):
    """Scales the colourfulness of sRGB (..., 3) around its luma: 0 is grey, 1 changes nothing. Needs no HSV, so no hue jumps."""
    luma = (pixels @ LUMA)[..., None]
    return luma + (pixels - luma) * F(factor)


# ---------------------------------------------------------------------------------------------------------------------------------
# Transfers on pixels. `source` (N, 3) is what changes, `reference` (M, 3) what it shall look like, both in the space of the match.
# `max_gain` bounds how far a contrast may be raised: above it, noise and JPEG blocks become the picture.


def _moments(pixels):
    """(pixels with their mean taken off, mean (3,), covariance (3, 3) float64). Products, for numpy reduces long thin arrays slowly."""
    mean = (np.ones(len(pixels), F) @ pixels) / F(len(pixels))
    centred = pixels - mean
    return centred, mean, (centred.T @ centred).astype(np.float64) / max(len(pixels) - 1, 1)


def match_mean_std(source, reference, max_gain=4.0):
    """Mean and deviation of each channel made equal to the reference's (Reinhard et al. 2001, equations 10 and 11)."""
    centred, _, covariance = _moments(source)
    _, goal, goal_covariance = _moments(reference)
    gain = np.sqrt(np.diag(goal_covariance) / np.maximum(np.diag(covariance), 1e-12))
    return centred * np.minimum(gain, max_gain).astype(F) + goal


def match_covariance(source, reference, max_gain=4.0):
    """Principal axes laid on principal axes, the spread along each made equal (Xiao & Ma 2006).

    The i-th strongest axis of the source goes to the i-th of the reference; of its two directions the nearer one is taken.
    """
    centred, _, covariance = _moments(source)
    _, goal, goal_covariance = _moments(reference)
    spread, axes = np.linalg.eigh(covariance)
    goal_spread, goal_axes = np.linalg.eigh(goal_covariance)
    signs = np.where((axes * goal_axes).sum(0) < 0, -1, 1)
    gain = np.minimum(np.sqrt(np.maximum(goal_spread, 0) / np.maximum(spread, 1e-12)), max_gain)
    return centred @ ((axes * (gain * signs)) @ goal_axes.T).astype(F) + goal


def match_monge_kantorovitch(source, reference, max_gain=4.0):
    """The linear map that gives the reference's mean and covariance and moves colours least (Pitié & Kokaram 2007)."""
    centred, _, covariance = _moments(source)
    _, goal, goal_covariance = _moments(reference)
    spread, axes = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(spread, 1e-12))
    middle_spread, middle_axes = np.linalg.eigh((root[:, None] * (axes.T @ goal_covariance @ axes)) * root)
    middle = (middle_axes * np.sqrt(np.maximum(middle_spread, 0))) @ middle_axes.T
    matrix = axes @ (middle / (root[:, None] * root)) @ axes.T
    gains, directions = np.linalg.eigh((matrix + matrix.T) / 2)
    matrix = (directions * np.clip(gains, 0, max_gain)) @ directions.T
    return centred @ matrix.astype(F) + goal


def match_values(source, reference, max_gain=4.0, bins=256):
    """One channel: values (N,) mapped so that their cumulative histogram becomes that of the reference (M,).

    The map is monotone and piecewise linear over `bins` steps, its slope at most `max_gain`; where that bound cuts it,
    the mean is still the reference's.
    """
    low, high = float(source.min()), float(source.max())
    if high - low < 1e-6:
        return np.full_like(source, reference.mean())
    place = (source - F(low)) * F(bins / (high - low))
    index = np.minimum(place.astype(np.intp), bins - 1)
    counts = np.bincount(index, minlength=bins)
    edges = np.concatenate([[0], np.cumsum(counts)]) / source.size
    ordered = np.sort(reference)
    curve = np.interp(edges * (ordered.size - 1), np.arange(ordered.size), ordered)
    ends = np.concatenate([np.full(3, curve[0]), curve, np.full(3, curve[-1])])
    curve = np.convolve(ends, np.full(7, 1 / 7), "valid")  # single bins are noise
    steps = np.minimum(np.diff(curve), max_gain * (high - low) / bins)
    curve = np.concatenate([[0], np.cumsum(steps)])
    curve += reference.mean() - (counts * (curve[1:] + curve[:-1])).sum() / (2 * source.size)
    # Within step i the map is slope * place + offset.
    slope, offset = np.diff(curve), curve[:-1] - np.arange(bins) * np.diff(curve)
    return slope.astype(F)[index] * place + offset.astype(F)[index]


def match_histograms(source, reference, max_gain=4.0):
    """`match_values` on each channel (Fecker et al. 2008)."""
    channels = zip(np.ascontiguousarray(source.T), np.ascontiguousarray(reference.T))
    return np.stack([match_values(a, b, max_gain) for a, b in channels]).T


def match_distribution(source, reference, max_gain=4.0, iterations=5, seed=0):
    """Iterative distribution transfer: 1-D matches along the axes of random rotations (Pitié et al. 2005).

    `seed` (or a numpy Generator) draws the rotations; the first one is the identity. Gains multiply over the iterations, so
    `max_gain` bounds the total spread as well.
    """
    rng = np.random.default_rng(seed)
    result, rotation = source, np.eye(3, dtype=F)
    for _ in range(iterations):
        result = match_histograms(result @ rotation, reference @ rotation, max_gain**0.5) @ rotation.T
        rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(F)
    centred, mean, covariance = _moments(result)
    gain = np.sqrt(np.trace(covariance) / max(np.trace(_moments(source)[2]), 1e-12))
    return result if gain <= max_gain else centred * F(max_gain / gain) + mean


TRANSFERS = {
    "reinhard": match_mean_std,
    "xiao": match_covariance,
    "monge_kantorovitch": match_monge_kantorovitch,
    "fecker": match_histograms,
    "pitie": match_distribution,
}


# ---------------------------------------------------------------------------------------------------------------------------------
# Pictures


def transfer_colors(
    source, reference, source_mask=None, reference_mask=None, method="reinhard", space="lab", max_gain=4.0
):
    """Gives the source's region the colours of the reference's region; outside the source's mask nothing changes.

    source, reference: torch, B3HW, RGB in [0, 1]; the sizes may differ, the batches not. source_mask, reference_mask: B1HW (or 11HW for all)
    in [0, 1], None for the whole picture; the region is where the mask is at least 0.5, and there
    the source's mask blends the result in.
    method: a key of `TRANSFERS`; space: a key of `SPACES`. An empty region (fewer than 2 pixels) leaves its picture unchanged.
    Raises ValueError for an unknown method or space, or shapes that do not fit.
    """
    if method not in TRANSFERS or space not in SPACES:
        raise InputError(
            f"no colour transfer {method!r} in {space!r}; methods: {', '.join(TRANSFERS)}; spaces: {', '.join(SPACES)}"
        )
    _check("source", source, source_mask)
    _check("reference", reference, reference_mask)
    if len(source) != len(reference):
        raise InputError(
            f"source and reference must be batches of the same length, got {len(source)} and {len(reference)}"
        )
    there, back = SPACES[space]
    result = source.clone()
    for number, picture in enumerate(source):
        inside = _region(source_mask, number, picture)
        reference_inside = _region(reference_mask, number, reference[number])
        pixels, goal = picture[:, inside].T, reference[number][:, reference_inside].T
        if len(pixels) < 2 or len(goal) < 2:
            continue
        pixels, goal = (there(p.detach().float().cpu().numpy()) for p in (pixels, goal))
        changed = np.clip(back(TRANSFERS[method](pixels, goal, max_gain)), 0, 1)
        target = picture.clone()
        target[:, inside] = torch.from_numpy(np.ascontiguousarray(changed.T, F)).to(picture)
        result[number] = (
            target
            if source_mask is None
            else torch.lerp(picture, target, source_mask[number % len(source_mask)].to(picture))
        )
    return result


def reinhard(source, reference, source_mask=None, reference_mask=None):
    """Reinhard's transfer of mean and deviation in Lab: `transfer_colors` with its defaults. With the composite as source and reference
    and the foreground and background as masks, it is the classic baseline of harmonization."""
    return transfer_colors(source, reference, source_mask, reference_mask)


def monge_kantorovitch(
    source: torch.Tensor,
    reference: torch.Tensor,
    source_mask: torch.Tensor | None = None,
    reference_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The Monge-Kantorovitch map in Lab: the closed-form transfer of mean and covariance; arguments as for `reinhard`."""
    return transfer_colors(source, reference, source_mask, reference_mask, "monge_kantorovitch")


def _region(mask, number, picture):
    if mask is None:
        return torch.ones(picture.shape[1:], dtype=torch.bool, device=picture.device)
    return mask[number % len(mask), 0].to(picture.device) >= 0.5


def _check(name, image, mask):
    if image.ndim != 4 or image.shape[1] != 3:
        raise InputError(f"{name} must be a batch of RGB pictures, B3HW, got shape {tuple(image.shape)}")
    if mask is None:
        return
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != image.shape[2:] or len(mask) not in (1, len(image)):
        raise InputError(
            f"the mask of {name} must be B1HW with its picture's size, got {tuple(mask.shape)} for {tuple(image.shape)}"
        )
