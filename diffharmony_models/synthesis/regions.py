"""Foregrounds for photos that come without masks: regions that follow the picture's own edges.

Segments of Felzenszwalb & Huttenlocher 2004 at a small size, merged with neighbours of like colour until they cover
enough of the picture; now and then a smooth random blob, for shapes that follow no edge. scikit-image and SciPy are
needed only here.
"""

from __future__ import annotations

import numpy as np

SIDE = 128  # longest side at which is segmented
AREA = (0.02, 0.45)  # share of the picture
BLOBS = 0.12


def segment(image: np.ndarray, rng: np.random.Generator, count: int = 1) -> list[np.ndarray]:
    """Up to `count` masks for a picture.

    image: (H, W, 3) float32 in [0, 1]. rng: numpy Generator. Returns a list of (H, W) bool arrays, each one connected
    region that covers between 2 % and 45 % of the picture; fewer than `count` (or none) where the picture gives no
    more.
    """
    from PIL import Image
    from skimage.segmentation import felzenszwalb

    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = (
        np.asarray(Image.fromarray((image * 255 + 0.5).astype(np.uint8)).resize(size, Image.Resampling.BOX), np.float32)
        / 255
    )
    labels = felzenszwalb(small, scale=float(rng.uniform(60, 250)), sigma=0.8, min_size=40)
    masks: list[np.ndarray] = []
    for _ in range(count * 4):
        goal = float(rng.uniform(0.17, 0.64) ** 2)  # small ones more often than large ones, as in iHarmony4
        region = _blob(labels.shape, goal, rng) if rng.random() < BLOBS else _grow(small, labels, goal, rng)
        mask = _enlarge(region, (height, width))
        if AREA[0] <= mask.mean() <= AREA[1] and all((mask & m).sum() < 0.6 * (mask | m).sum() for m in masks):
            masks.append(mask)
        if len(masks) == count:
            break
    return masks


def _grow(image: np.ndarray, labels: np.ndarray, goal: float, rng: np.random.Generator) -> np.ndarray:
    """A random segment and its neighbours, the most alike first, until `goal` of the picture is covered. The border is
    avoided as a start.
    """
    number = labels.max() + 1
    sizes = np.bincount(labels.ravel(), minlength=number)
    colors = (
        np.stack([np.bincount(labels.ravel(), image[..., c].ravel(), number) for c in range(3)], 1) / sizes[:, None]
    )
    touching = np.zeros((number, number), bool)
    for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        touching[first, second] = touching[second, first] = True
    height, width = labels.shape
    start = labels[int(height * rng.uniform(0.15, 0.85)), int(width * rng.uniform(0.15, 0.85))]
    inside = np.zeros(number, bool)
    inside[start] = True
    wanted = goal * labels.size
    while sizes[inside].sum() < wanted:
        near = touching[inside].any(0) & ~inside & (sizes[inside].sum() + sizes < 1.8 * wanted)
        if not near.any():
            break
        mean = (colors[inside] * sizes[inside, None]).sum(0) / sizes[inside].sum()
        candidates = np.flatnonzero(near)
        inside[
            candidates[np.argmin(((colors[candidates] - mean) ** 2).sum(1) + rng.exponential(0.02, len(candidates)))]
        ] = True
    return inside[labels]


def _blob(shape: tuple[int, ...], goal: float, rng: np.random.Generator) -> np.ndarray:
    """The highest part of smooth noise."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), min(shape) * rng.uniform(0.08, 0.16))
    return noise > np.quantile(noise, 1 - goal)


def _enlarge(region: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Holes filled, scaled up with a smooth outline, the largest connected part kept."""
    from PIL import Image
    from scipy.ndimage import binary_fill_holes, gaussian_filter, label

    soft = gaussian_filter(binary_fill_holes(region).astype(np.float32), 0.8)
    large = np.asarray(Image.fromarray(soft).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)) > 0.5
    parts, count = label(large)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else large
