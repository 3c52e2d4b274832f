"""The classic, statistics-based colour transfers, as baselines of harmonization: the foreground gets the background's
colours, in Lab.
"""

from collections.abc import Callable

import numpy as np
import torch
from skimage.color import lab2rgb, rgb2lab

Match = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""source (N, 3), which changes, and reference (M, 3), what it shall look like, to (N, 3); float32."""

MAX_GAIN = 4.0  # how far a contrast may be raised: above it, noise and JPEG blocks become the picture


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pixels with their mean taken off, mean (3,), covariance (3, 3) float64).

    Products, for numpy reduces long thin arrays slowly.
    """
    mean = (np.ones(len(pixels), np.float32) @ pixels) / np.float32(len(pixels))
    centred = pixels - mean
    return centred, mean, (centred.T @ centred).astype(np.float64) / max(len(pixels) - 1, 1)


def match_mean_std(source: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean and deviation of each channel made equal to the reference's (Reinhard et al. 2001, equations 10 and 11)."""
    centred, _, covariance = _moments(source)
    _, goal, goal_covariance = _moments(reference)
    gain = np.sqrt(np.diag(goal_covariance) / np.maximum(np.diag(covariance), 1e-12))
    return centred * np.minimum(gain, MAX_GAIN).astype(np.float32) + goal


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
    return centred @ matrix.astype(np.float32) + goal


def reinhard(composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Gives the foreground the mean and deviation of the background (Reinhard et al. 2001).

    composite: B3HW, RGB in [0, 1]. mask: B1HW, 1 = foreground, 0 = background. Returns B3HW in [0, 1], outside the mask
    the composite's own pixels. A picture whose foreground or background has fewer than 2 pixels comes back as it is.
    """
    return _transfer(match_mean_std, composite, mask)


def monge_kantorovitch(composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As `reinhard`, with mean and covariance: the closed-form linear map (Pitié & Kokaram 2007)."""
    return _transfer(match_monge_kantorovitch, composite, mask)


def _transfer(match: Match, composite: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    result = composite.clone()
    for picture, inside in zip(result, mask[:, 0] >= 0.5):
        source, reference = (rgb2lab(picture[:, where].T.float().cpu().numpy()) for where in (inside, ~inside))
        if len(source) >= 2 and len(reference) >= 2:
            changed = lab2rgb(match(source, reference)).clip(0, 1)
            picture[:, inside] = torch.from_numpy(changed.T.copy()).to(picture)
    return result
