"""The data: photos for the autoencoder, pairs in the shape of iHarmony4 for the two stages."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import iharmony
from ..errors import InputError
from . import looks, sources


def training_photos(source: Path, seed: int, test_share: float) -> list[Path]:
    """The photos of a folder or an index (`.jsonl`) that `make-composites` with this seed and share would train on.

    Raises:
        ValueError: nothing there, or lines that are no index.
    """
    source = Path(source)
    entries = sources.read_folders(source) if source.is_dir() else sources.read_index(source)
    return sorted({Path(e.image) for e in entries if sources.side(e, seed, test_share) == "train"})


def _open(path: Path, mode: str, least_side: int = 0) -> Image.Image:
    """The picture; with `least_side`, a JPEG may be decoded at a fraction of its size that keeps both sides at least so long."""
    try:
        with Image.open(path) as image:
            if least_side:
                image.draft(mode, (least_side, least_side))
            return image.convert(mode)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read as a picture ({error}). Repair it or take it out of the list."
        ) from error


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB or L picture as float32 [C, H, W] in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)))


def random_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float], ratio=(3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) of a random resized crop: a share of the area in `scale`, an aspect in `ratio` (log-uniform)."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = float(np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]))))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


class Photos:
    """Random crops of photos for the autoencoder: {"image": [3, size, size] in [0, 1]}, flipped, with a global change of colour now and then.

    The colours of the harmonizer's composites are often unusual; an autoencoder that never saw such colours would pull them back.
    """

    def __init__(self, paths: list[Path], size: int, color_jitter: float = 0.5):
        self.paths, self.size, self.color_jitter = paths, size, color_jitter

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        image = _open(self.paths[index], "RGB")
        scale = self.size / min(image.size) * rng.uniform(1, 2)
        if scale < 1:
            scale = rng.uniform(scale, 1)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        left, top = int(rng.integers(0, width - self.size + 1)), int(rng.integers(0, height - self.size + 1))
        box = (
            left / width * image.width,
            top / height * image.height,
            (left + self.size) / width * image.width,
            (top + self.size) / height * image.height,
        )
        pixels = to_tensor(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))
        if rng.random() < 0.5:
            pixels = pixels.flip(-1)
        if rng.random() < self.color_jitter:
            gain, gamma = (
                torch.from_numpy(np.exp(rng.normal(0, s, (3, 1, 1)) + rng.normal(0, s)).astype(np.float32))
                for s in (0.15, 0.2)
            )
            pixels = (pixels.clamp(0, 1) ** gamma * gain).clamp(0, 1)
        return {"image": pixels}


class Pairs:
    """Composite, real picture and mask of an iHarmony4-shaped data set, augmented as in the paper.

        Random resized crop (scale 0.5 to 1, ratio 3/4 to 4/3; drawn again, 5 times at most, while the mask covers less than 1 %) and
    horizontal flip. A `limit` takes that many pairs, evenly spread over the list. Gives {"composite", "real": [3, size, size] in [0, 1], "mask": [1, size, size] in {0, 1}}.
    """

    def __init__(self, root: Path, list_file: Path, size: int, augment: bool = True, limit: int = 0):
        self.triples = iharmony.pairs(root, list_file)
        if limit:
            self.triples = self.triples[:: max(1, len(self.triples) // limit)][:limit]
        self.size, self.augment = size, augment

    def __len__(self) -> int:
        return len(self.triples)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        triple = self.triples[index]
        composite, real, mask = _open(triple.composite, "RGB"), _open(triple.real, "RGB"), _open(triple.mask, "L")
        real, mask = (
            picture if picture.size == composite.size else picture.resize(composite.size, Image.Resampling.BILINEAR)
            for picture in (real, mask)
        )
        box, size = (0, 0, *composite.size), (self.size, self.size)
        if self.augment:
            box = _crop(mask, self.size, rng)
        sample = {
            "composite": to_tensor(composite.resize(size, Image.Resampling.BILINEAR, box=box)),
            "real": to_tensor(real.resize(size, Image.Resampling.BILINEAR, box=box)),
            "mask": (to_tensor(mask.resize(size, Image.Resampling.BILINEAR, box=box)) >= 0.5).float(),
        }
        if self.augment and rng.random() < 0.5:
            sample = {name: value.flip(-1) for name, value in sample.items()}
        return sample


class Recolored(Pairs):
    """The same pairs, but each composite is made anew from its real picture: another change of look every time it is drawn.

    A listed composite shows one change of one foreground; a network that sees it again learns it by heart. Here no two draws are alike.
    The colours may be lent by any other pair's foreground, and half of the time the whole picture is changed a little first,
    so that neither can the real picture's own colours be learned by heart. Composites are made as `looks.change_look` says.
    """

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        real, mask = self._read(index, rng, self.size)
        if rng.random() < 0.5:
            real = looks.apply(real.reshape(-1, 3), looks.draw_retouch(rng, 0.35)).reshape(real.shape)
        reference = self._read(int(rng.integers(len(self))), rng, min(self.size, 64))
        composite, _ = looks.change_look(real, mask, rng, reference) if mask.any() else (real, None)
        return {"composite": _tensor(composite), "real": _tensor(real), "mask": torch.from_numpy(mask)[None].float()}

    def _read(self, index: int, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Real picture [size, size, 3] float32 in [0, 1] and mask [size, size] bool, cropped and flipped as `Pairs` does."""
        triple = self.triples[index]
        real, mask = _open(triple.real, "RGB", size * 2), _open(triple.mask, "L")
        box = _crop(mask, size, rng) if self.augment else (0, 0, *mask.size)
        scaled = tuple(
            side * real_side / mask_side for side, real_side, mask_side in zip(box, real.size * 2, mask.size * 2)
        )
        pixels = np.asarray(real.resize((size, size), Image.Resampling.BILINEAR, box=scaled), np.float32) / 255
        inside = np.asarray(mask.resize((size, size), Image.Resampling.BILINEAR, box=box)) >= 128
        if self.augment and rng.random() < 0.5:
            pixels, inside = pixels[:, ::-1], inside[:, ::-1]
        return np.ascontiguousarray(pixels), np.ascontiguousarray(inside)


def _crop(mask: Image.Image, size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Box of a random resized crop, drawn again (5 times at most) while the mask covers less than 1 % of it."""
    for _ in range(6):
        box = random_box(*mask.size, rng, (0.5, 1.0))
        if np.asarray(mask.resize((size, size), Image.Resampling.BILINEAR, box=box)).mean() >= 0.01 * 255:
            break
    return box


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
