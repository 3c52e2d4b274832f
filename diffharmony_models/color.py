"""The classic, statistics-based colour transfers, as baselines of harmonization.

Functions on pixels take and return numpy float32 arrays of shape (..., 3) (colour spaces) or (N, 3) (matches); RGB is
sRGB in [0, 1]. `reinhard` (Reinhard et al. 2001) and `monge_kantorovitch` (Pitié & Kokaram 2007) work in Lab on whole
pictures: torch, BCHW in [0, 1], with masks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .errors import InputError

F = np.float32
Match = Callable[[np.ndarray, np.ndarray], np.ndarray]

# sRGB primaries, white D65 (IEC 61966-2-1).
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _XYZ.sum(1)
_TO_XYZ = (_XYZ / _WHITE[:, None]).T.astype(F)
_FROM_XYZ = np.linalg.inv(_XYZ / _WHITE[:, None]).T.astype(F)
_F_TO_LAB = np.array([[0, 500, 0], [116, -500, 200], [0, 0, -200]], F)
_LAB_TO_F = np.linalg.inv(_F_TO_LAB.astype(float)).astype(F)


def srgb_to_linear(pixels: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light in [0, 1]; negative values are taken as 0. Any shape, float32."""
    pixels = np.maximum(np.asarray(pixels, F), 0)
    return np.where(pixels <= F(0.04045), pixels * F(1 / 12.92), ((pixels + F(0.055)) * F(1 / 1.055)) ** F(2.4))


def linear_to_srgb(pixels: np.ndarray) -> np.ndarray:
    """Linear light to sRGB, the inverse of `srgb_to_linear`; values above 1 stay above 1. Any shape, float32."""
    pixels = np.maximum(np.asarray(pixels, F), 0)
    return np.where(pixels <= F(0.0031308), pixels * F(12.92), F(1.055) * pixels ** F(1 / 2.4) - F(0.055))


def rgb_to_lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) to CIE Lab, white D65: L in [0, 100], a and b about [-110, 110] (CIE 15:2004)."""
    xyz = srgb_to_linear(pixels) @ _TO_XYZ
    curve = np.where(xyz > F(216 / 24389), np.maximum(xyz, 0) ** F(1 / 3), xyz * F(841 / 108) + F(4 / 29))
    lab = curve @ _F_TO_LAB
    lab[..., 0] -= 16
    return lab


def lab_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """CIE Lab (..., 3) to sRGB, the inverse of `rgb_to_lab`. Colours outside sRGB come out at 0, or above 1."""
    lab = np.array(pixels, F)
    lab[..., 0] += 16
    curve = lab @ _LAB_TO_F
    xyz = np.where(curve > F(6 / 29), curve * curve * curve, (curve - F(4 / 29)) * F(108 / 841))
    return linear_to_srgb(xyz @ _FROM_XYZ)


# --- Matches of pixels: `source` (N, 3) is what changes, `reference` (M, 3) what it shall look like ---

MAX_GAIN = 4.0  # how far a contrast may be raised: above it, noise and JPEG blocks become the picture


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels with their mean taken off, mean (3,), covariance (3, 3) float64).

    Products, for numpy reduces long thin arrays slowly.
    """
    mean = (np.ones(len(pixels), F) @ pixels) / F(len(pixels))
    centred = pixels - mean
    return centred, mean, (centred.T @ centred).astype(np.float64) / max(len(pixels) - 1, 1)


def match_mean_std(source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean and deviation of each channel made equal to the reference's (Reinhard et al. 2001, equations 10 and 11)."""
    centred, _, covariance = _moments(source)
    _, goal, goal_covariance = _moments(reference)
    gain = np.sqrt(np.diag(goal_covariance) / np.maximum(np.diag(covariance), 1e-12))
    return centred * np.minimum(gain, MAX_GAIN).astype(F) + goal


def match_monge_kantorovitch(source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The linear map that gives the reference's mean and covariance and moves colours least (Pitié & Kokaram 2007)."""
    centred, _, covariance = _moments(source)
    _, goal, goal_covariance = _moments(reference)
    spread, axes = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(spread, 1e-12))
    middle_spread, middle_axes = np.linalg.eigh((root[:, None] * (axes.T @ goal_covariance @ axes)) * root)
    middle = (middle_axes * np.sqrt(np.maximum(middle_spread, 0))) @ middle_axes.T
    matrix = axes @ (middle / (root[:, None] * root)) @ axes.T
    gains, directions = np.linalg.eigh((matrix + matrix.T) / 2)
    matrix = (directions * np.clip(gains, 0, MAX_GAIN)) @ directions.T
    return centred @ matrix.astype(F) + goal


# --- Pictures ---


def reinhard(
    source: torch.Tensor,
    reference: torch.Tensor,
    source_mask: torch.Tensor | None = None,
    reference_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gives the source's region the mean and deviation of the reference's region, in Lab; outside the source's mask
    nothing changes. With the composite as source and reference and the foreground and background as masks, it is the
    classic baseline of harmonization.

    source, reference: B3HW, RGB in [0, 1]; the sizes may differ, the batches not. source_mask, reference_mask: B1HW (or
    11HW for all) in [0, 1], None for the whole picture; the region is where the mask is at least 0.5, and there the
    source's mask blends the result in. An empty region (fewer than 2 pixels) leaves its picture unchanged.

    Raises:
        InputError: shapes that do not fit.
    """
    return _transfer(match_mean_std, source, reference, source_mask, reference_mask)


def monge_kantorovitch(
    source: torch.Tensor,
    reference: torch.Tensor,
    source_mask: torch.Tensor | None = None,
    reference_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `reinhard`, with mean and covariance: the closed-form linear map."""
    return _transfer(match_monge_kantorovitch, source, reference, source_mask, reference_mask)


def _transfer(
    match: Match,
    source: torch.Tensor,
    reference: torch.Tensor,
    source_mask: torch.Tensor | None,
    reference_mask: torch.Tensor | None,
) -> torch.Tensor:
    _check("source", source, source_mask)
    _check("reference", reference, reference_mask)
    if len(source) != len(reference):
        raise InputError(
            f"source and reference must be batches of the same length, got {len(source)} and {len(reference)}"
        )
    result = source.clone()
    for number, picture in enumerate(source):
        inside = _region(source_mask, number, picture)
        reference_inside = _region(reference_mask, number, reference[number])
        pixels, goal = (
            rgb_to_lab(region.T.detach().float().cpu().numpy())
            for region in (picture[:, inside], reference[number][:, reference_inside])
        )
        if len(pixels) < 2 or len(goal) < 2:
            continue
        changed = np.clip(lab_to_rgb(match(pixels, goal)), 0, 1)
        target = picture.clone()
        target[:, inside] = torch.from_numpy(np.ascontiguousarray(changed.T, F)).to(picture)
        result[number] = (
            target
            if source_mask is None
            else torch.lerp(picture, target, source_mask[number % len(source_mask)].to(picture))
        )
    return result


def _region(mask: torch.Tensor | None, number: int, picture: torch.Tensor) -> torch.Tensor:
    if mask is None:
        return torch.ones(picture.shape[1:], dtype=torch.bool, device=picture.device)
    return mask[number % len(mask), 0].to(picture.device) >= 0.5


def _check(name: str, image: torch.Tensor, mask: torch.Tensor | None) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise InputError(f"{name} must be a batch of RGB pictures, B3HW, got shape {tuple(image.shape)}")
    if mask is None:
        return
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != image.shape[2:] or len(mask) not in (1, len(image)):
        raise InputError(
            f"the mask of {name} must be B1HW with its picture's size, got {tuple(mask.shape)} for {tuple(image.shape)}"
        )
