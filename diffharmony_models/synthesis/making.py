"""All composites of one photo: which foregrounds, which changes, which files."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import disk_full, reason
from ..files.iharmony import COMPOSITES, MASKS, REALS
from . import composites, folder
from .reading import Unsuited, Unusable, read_mask, read_photo, read_reference
from .regions import segment
from .sources import PHOTOS, Entry, Pools, digest, pick_reference

log = logging.getLogger(__name__)
ATTEMPTS = 3  # draws for a composite before it is given up
FAINTEST = 1.0  # the foreground's mean squared error, of 255², under which nothing was changed
FORMAT = ".jpg"
# Of the `composites.KINDS`; not those without any change, which are for training and nothing to be measured by.
SHARES = tuple(
    0.0 if kind == "none" else share for kind, share in zip(composites.KINDS, composites.SHARES, strict=True)
)

Made = tuple[list[folder.Row], list[str]]
"""Rows of the manifest, reasons why foregrounds were left out."""


class Fault(str):
    """Why something was left out, where the input or the program is at fault, not just a foreground that fits badly."""


@dataclass(frozen=True)
class Task:
    """One photo with its foregrounds: (number, entry) for given masks; without, one is segmented."""

    entry: Entry
    name: str
    subset: str
    side: str
    masks: tuple[tuple[int, Entry], ...]

    def path(self, kind: str, name: str) -> str:
        """The place in the data set, as its lists and its manifest say it."""
        return f"{self.subset}/{kind}/{name}"

    def composite(self, number: int, n: int) -> str:
        """The place of composite `n` of foreground `number`."""
        return self.path(COMPOSITES, f"{self.name}-{number}-{n}_1_1{FORMAT}")


@dataclass(frozen=True)
class Pair:
    """A composite and its truth as they are written: [H, W, 3] uint8."""

    composite: np.ndarray
    real: np.ndarray
    kind: str
    local: bool

    def squares(self) -> np.ndarray:
        """[H, W]: the squared error, mean of the channels, of 255²."""
        return np.square(self.composite.astype(np.float32) - self.real).mean(2)


@dataclass(frozen=True)
class Maker:
    """Makes the composites of a task.

    output: the data set's folder. size: short side of what is written (0: the photo's own). per_mask: composites for
    each foreground. A composite depends on the seed, its foreground and its number alone.
    """

    output: Path
    seed: int
    size: int
    per_mask: int
    pools: Pools

    def attempt(self, task: Task) -> Made:
        """`make`; a fault met in one photo, of whatever kind, is that photo's, but for a disk that takes no more."""
        try:
            return self.make(task)
        except Exception as error:
            if disk_full(error):
                raise
            return [], [Fault(f"{task.entry.image}: {reason(error, log)}")]

    def make(self, task: Task) -> Made:
        """All composites of one photo; what already lies there is not made again."""
        numbers = [number for number, _ in task.masks] or [1]
        there = [
            folder.finished(self.output / task.composite(number, n))
            for number in numbers
            for n in range(1, self.per_mask + 1)
        ]
        if None not in there:
            return [row for row in there if row is not None], []
        try:
            photo = read_photo(task.entry.image, self.size)
        except Unusable as error:
            return [], [Fault(error)]
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        rows: list[folder.Row] = []
        failures: list[str] = []
        for number, entry, mask in self._foregrounds(task, photo, failures):
            made = 0
            for n in range(1, self.per_mask + 1):
                path = self.output / task.composite(number, n)
                row = folder.finished(path)
                if row is None:
                    pair = self._pair(pixels, mask, entry, number, n, task.side)
                    if pair is None:
                        continue
                    row = _row(task, entry, number, n, mask, pair)
                    # The composite last: where it lies, its mask, its real picture and its photo lie too.
                    folder.save(self.output / row["photo"], photo)
                    folder.save(self.output / row["real"], pair.real)
                    folder.save(self.output / row["mask"], mask.astype(np.uint8) * 255)
                    folder.save(path, pair.composite, row)
                rows.append(row)
                made += 1
            if not made:
                failures.append(f"{entry.mask or entry.image}: every change drawn for it was too faint")
        return rows, failures

    def _foregrounds(
        self, task: Task, photo: np.ndarray, failures: list[str]
    ) -> Iterator[tuple[int, Entry, np.ndarray]]:
        """(number, entry, mask [H, W] bool) of the task's foregrounds, given or segmented."""
        for number, entry in task.masks:
            assert entry.mask is not None
            try:
                yield number, entry, read_mask(entry.mask, task.entry.image, photo.shape[:2])
            except Unusable as error:
                failures.append(str(error) if isinstance(error, Unsuited) else Fault(error))
        if not task.masks:
            rng = np.random.default_rng([self.seed, digest("regions", task.entry.key)])
            for mask in segment(photo.astype(np.float32) / 255, rng):
                yield 1, task.entry, mask

    def _pair(self, photo: torch.Tensor, mask: np.ndarray, entry: Entry, number: int, n: int, side: str) -> Pair | None:
        """Composite number n of a foreground; None where every draw leaves it as it was.

        photo: [1, 3, H, W] in [0, 1].
        """
        rng = np.random.default_rng([self.seed, digest(entry.key), number, n])
        inside = torch.from_numpy(mask)[None, None].float()
        for _ in range(ATTEMPTS):
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            reference = self._reference(entry, side, rng)
            pairs = composites.make(photo, inside, generator, reference, shares=SHARES)
            composite, truth = (
                (picture[0].permute(1, 2, 0) * 255).round().byte().numpy() for picture in (pairs.composite, pairs.real)
            )
            pair = Pair(composite, truth, composites.KINDS[int(pairs.kind)], bool(pairs.local))
            if pair.squares()[mask].mean() >= FAINTEST:
                return pair
        return None

    def _reference(self, entry: Entry, side: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and covariance of another scene's foreground; None where there is none, or none that can be read."""
        other = pick_reference(entry, side, self.pools, rng)
        if other is None:
            return None
        try:
            picture, mask = read_reference(other, rng)
        except Unusable:
            return None
        return composites.statistics(
            torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, torch.from_numpy(mask)[None, None].float()
        )


def _row(task: Task, entry: Entry, number: int, n: int, mask: np.ndarray, pair: Pair) -> folder.Row:
    """A line of the manifest."""
    squares = pair.squares()
    image = f"{task.name}-{number}-{n}"
    return {
        "composite": task.composite(number, n),
        "mask": task.path(MASKS, f"{image}_1.png"),
        "real": task.path(REALS, f"{image}{FORMAT}"),
        "photo": task.path(PHOTOS, f"{task.name}{FORMAT}"),
        "foreground": number,
        "split": task.side,
        "subset": task.subset,
        "source": entry.source,
        "group": entry.group,
        # None says that we segmented the foreground ourselves; a mask that was given may have no label, too.
        "label": (entry.label or "") if entry.mask else None,
        "licence": entry.licence,
        "kind": pair.kind,
        "local": pair.local,
        "area": round(float(mask.mean()), 4),
        "fmse": round(float(squares[mask].mean()), 1),
        "psnr": round(10 * math.log10(255**2 / float(squares.mean())), 2),
    }
