"""The data: photos for the autoencoder, pairs in the shape of iHarmony4 for the two stages."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import InputError
from ..files import decoding, iharmony, images
from ..synthesis import composites, sources

logger = logging.getLogger(__name__)

MARGIN = 1.25  # pictures are kept in memory at so many times the training size, so that crops stay sharp


class Samples(Protocol):
    """What a training draws from: a sample is what its index and a generator for the augmentation say."""

    def __len__(self) -> int: ...

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]: ...


def load(dataset: Dataset, workers: int, **options: Any) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of a dataset, read ahead by so many processes; `options` are DataLoader's.

    An InputError met in one of them arrives as it is: torch itself would wrap it into a page of text.
    """
    ahead = {"prefetch_factor": 4} if workers else {}
    for batch in DataLoader(_Told(dataset), num_workers=workers, collate_fn=_collate, **ahead, **options):
        if isinstance(batch, InputError):
            raise batch
        yield batch


class _Told(Dataset):
    """A dataset whose input errors are values."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor] | InputError:
        try:
            return self.dataset[place]
        except InputError as error:
            return InputError(str(error))


def _collate(samples: list) -> dict[str, torch.Tensor] | InputError:
    return next((sample for sample in samples if isinstance(sample, InputError)), None) or default_collate(samples)


def training_photos(given: list[Path]) -> list[Path]:
    """The photos to train on: those of folders, index files (`.jsonl`) and data sets as `make-composites` writes them.

    Of a data set, the photos of its IHD_train.txt (the real pictures where no manifest names the photos), never one of
    IHD_test.txt. Where one was written by
    `make-composites`, what fell on its test side is left out of the other sources, too.

    Raises:
        InputError: nothing there, lines that are no index, or a data set that is not finished.
    """
    datasets = [source for source in given if sources.is_dataset(source)]
    splits = [sources.read_settings(source) for source in datasets if (source / sources.SETTINGS).is_file()]
    photos = {path for source in datasets for path in _listed_photos(source)}
    for source in given:
        if source not in datasets:
            entries = sources.read_folders(source) if source.is_dir() else sources.read_index(source)
            photos |= {
                Path(entry.image)
                for entry in entries
                if all(sources.side(entry, split["seed"], split["test_share"]) == "train" for split in splits)
            }
    if not photos:
        raise InputError(f"No photo to train on in {', '.join(map(str, given))}: all of them are kept for testing.")
    return sorted(photos)


def _listed_photos(dataset: Path) -> set[Path]:
    if not (dataset / sources.LISTS["train"]).is_file():
        raise InputError(f"{dataset} is not finished: start make-composites again, then the training.")
    photos: dict[str, set[Path]] = {split: set() for split in sources.LISTS}
    manifest = sources.read_manifest(dataset)
    for split, name in sources.LISTS.items():
        path = dataset / name
        if path.is_file() and path.stat().st_size:
            triples = iharmony.pairs(dataset, name)
            photos[split] = {_origin(triple, dataset, manifest).photo or triple.real for triple in triples}
    return photos["train"] - photos["test"]


def _origin(triple: iharmony.Triple, root: Path, manifest: dict[str, sources.Origin]) -> sources.Origin:
    """What the manifest says of a pair; without it, as of iHarmony4: masks that were given."""
    name = triple.composite.relative_to(root).as_posix()
    return manifest.get(name, sources.Origin(photo=None, foreground=None, given=True, kind=None))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB or L picture as float32 [C, H, W] in [0, 1]."""
    return images.to_tensor(image)[0]


def shown(samples: Samples, count: int) -> dict[str, torch.Tensor]:
    """A batch of at most so many samples, evenly spread and always the same: what sample sheets are made of."""
    places = range(0, len(samples), max(1, len(samples) // count))[:count]
    return default_collate([samples.get(place, np.random.default_rng((17, place))) for place in places])


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) of a random resized crop: a share of the area in `scale`, an aspect in `ratio`
    (log-uniform).
    """
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


def check_proportions(path: Path, size: tuple[int, int], other: Path, other_size: tuple[int, int]) -> None:
    """InputError where two pictures (sizes: width, height) are not of the same proportions, up to two pixels of
    rounding.
    """
    (width, height), (other_width, other_height) = size, other_size
    if abs(width * other_height - height * other_width) > 2 * max(*size, *other_size):
        raise InputError(
            f"{path} is {width}x{height}, {other} {other_width}x{other_height}; both must have the same proportions."
        )


class Photos:
    """Random crops of photos for the autoencoder: {"image": [3, size, size] in [0, 1]}, flipped, with a global change
    of colour now and then.

    The colours of the harmonizer's composites are often unusual; an autoencoder that never saw such colours would pull
    them back.
    """

    def __init__(self, paths: list[Path], size: int, color_jitter: float = 0.5):
        self.paths, self.size, self.color_jitter = paths, size, color_jitter

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        image = decoding.open_picture(self.paths[index])
        # Near the size that stage 1 sees: a short side of 256.
        scale = max(self.size / min(image.size), rng.uniform(0.5, 1.2) * 256 / min(image.size))
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

    Random resized crop (scale 0.5 to 1, ratio 3/4 to 4/3; drawn again, 5 times at most, while the mask covers less than
    1 %) and horizontal flip. A `limit` takes that many pairs, evenly spread over the list. Gives {"composite", "real":
    [3, size, size] in [0, 1], "mask": [1, size, size] in {0, 1}}.
    """

    def __init__(self, root: Path, list_file: str | Path, size: int, limit: int = 0):
        self.triples = iharmony.pairs(root, list_file)
        if limit:
            self.triples = self.triples[:: max(1, len(self.triples) // limit)][:limit]
        self.size = size

    def __len__(self) -> int:
        return len(self.triples)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        triple = self.triples[index]
        composite, real, mask = (
            decoding.open_picture(triple.composite),
            decoding.open_picture(triple.real),
            decoding.open_mask(triple.mask),
        )
        for path, picture in ((triple.real, real), (triple.mask, mask)):
            check_proportions(path, picture.size, triple.composite, composite.size)
        real, mask = (
            picture if picture.size == composite.size else picture.resize(composite.size, Image.Resampling.BILINEAR)
            for picture in (real, mask)
        )
        box, size = _crop(mask, self.size, rng), (self.size, self.size)
        sample = {
            "composite": to_tensor(composite.resize(size, Image.Resampling.BILINEAR, box=box)),
            "real": to_tensor(real.resize(size, Image.Resampling.BILINEAR, box=box)),
            "mask": (to_tensor(mask.resize(size, Image.Resampling.BILINEAR, box=box)) >= 0.5).float(),
        }
        if rng.random() < 0.5:
            sample = {name: value.flip(-1) for name, value in sample.items()}
        return sample


class Foregrounds:
    """The photos of an iHarmony4-shaped data set with their masks, each foreground once, for composites that are made
    anew for every sample. Where no manifest names the photos, the real pictures are taken.

    Gives {"photo": [3, size, size] in [0, 1], "mask": [1, size, size] in {0, 1}, "mean": [3], "covariance": [3, 3]},
    the last two of the colours of another picture's foreground. Random crops and flips as `Pairs`. Pictures are kept in
    memory, somewhat larger than `size`.

    Args:
        held_out: subsets that are left out.
    """

    def __init__(self, root: Path, list_file: str | Path, size: int, held_out: Sequence[str] = ()):
        kept = int(size * MARGIN)
        unknown = set(held_out)
        self.size = size
        self.pictures: list[Image.Image] = []
        self.masks: list[Image.Image] = []
        seen: set[tuple[Path, Path | int]] = set()
        subsets, given = [], []
        manifest = sources.read_manifest(root)
        for triple in iharmony.pairs(root, list_file):
            unknown.discard(triple.subset)
            origin = _origin(triple, root, manifest)
            path = origin.photo or triple.real
            foreground = (path, triple.mask if origin.foreground is None else origin.foreground)
            if foreground in seen or triple.subset in held_out:
                continue
            seen.add(foreground)
            photo, mask = decoding.open_picture(path, kept), decoding.open_mask(triple.mask)
            check_proportions(triple.mask, mask.size, path, photo.size)
            mask = mask.resize((kept, kept), Image.Resampling.BILINEAR)
            if not mask.getbbox():
                continue
            self.pictures.append(photo.resize((kept, kept), Image.Resampling.BILINEAR))
            self.masks.append(mask)
            subsets.append(triple.subset)
            given.append(origin.given)
        if unknown:  # a recipe may name what its own data had
            logger.warning(
                "no subset %s in %s: nothing of it to hold out", ", ".join(sorted(unknown)), root / list_file
            )
        if not seen:
            raise InputError(f"{root / list_file} names no picture that is not held out.")
        if not self.pictures:
            raise InputError(
                f"There is no foreground in any mask of {root / list_file}; white, or opaque, is foreground."
            )
        # A large source must not rule: sources count by the root of their size. A mask that somebody drew around a
        # thing is worth two of regions that we segmented.
        sizes = Counter(subsets)
        weights = np.array([sizes[name] ** -0.5 * (2 if own else 1) for name, own in zip(subsets, given, strict=True)])
        self.cumulative = np.cumsum(weights / weights.sum())
        found = [
            composites.statistics(*(to_tensor(picture.resize((48, 48)))[None] for picture in pair))
            for pair in zip(self.pictures, self.masks, strict=True)
        ]
        self.means, self.covariances = (torch.cat(values) for values in zip(*found, strict=True))

    def __len__(self) -> int:
        return len(self.pictures)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        index = min(int(np.searchsorted(self.cumulative, rng.random())), len(self) - 1)
        picture, mask = self.pictures[index], self.masks[index]
        for _ in range(5):
            box = random_box(*picture.size, rng, (0.4, 1.0))
            share = np.asarray(mask.resize((32, 32), Image.Resampling.BOX, box=box)).mean() / 255
            if 0.01 < share < 0.8:
                break
        else:
            box = (0, 0, *picture.size)
        size = (self.size, self.size)
        photo = to_tensor(picture.resize(size, Image.Resampling.BILINEAR, box=box))
        inside = (to_tensor(mask.resize(size, Image.Resampling.BILINEAR, box=box)) >= 0.5).float()
        if rng.random() < 0.5:
            photo, inside = photo.flip(-1), inside.flip(-1)
        other = int(rng.integers(len(self)))
        return {"photo": photo, "mask": inside, "mean": self.means[other], "covariance": self.covariances[other]}


def _crop(mask: Image.Image, size: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Box of a random resized crop, drawn again (5 times at most) while the mask covers less than 1 % of it."""
    for _ in range(6):
        box = random_box(*mask.size, rng, (0.5, 1.0))
        if np.asarray(mask.resize((size, size), Image.Resampling.BILINEAR, box=box)).mean() >= 0.01 * 255:
            break
    return box
