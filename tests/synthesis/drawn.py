"""Small drawn photos, and data sets made of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from diffharmony_models.synthesis import dataset, sources

HEIGHT, WIDTH = 48, 64


def photo(seed: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Coloured discs with some texture on a gradient: uint8 [H, W, 3], and the mask of the largest disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = rng.uniform(0.2, 0.7, 3) + (x * rng.uniform(-0.2, 0.2) + y * rng.uniform(-0.2, 0.2))[..., None]
    for radius in (0.1, 0.14, 0.22):
        mask = (x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.2, 0.5)) ** 2 < radius**2
        picture[mask] = rng.uniform(0.2, 0.8, 3) + 0.1 * np.sin(40 * x[mask] + 3)[:, None]
    picture += rng.normal(0, 0.02, picture.shape)
    return (picture.clip(0, 1) * 255).astype(np.uint8), mask


def build(output: Path, *indices: Path, processes: int = 1, **settings: float) -> tuple[list[dict], list[str]]:
    """What `dataset.build` makes of these index files, with settings of the tests' own."""
    entries = [entry for index in indices for entry in sources.read_index(index)]
    return dataset.build(entries, output, dataset.Settings(**{"per_mask": 2, "test_share": 0.3, **settings}), processes)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)
