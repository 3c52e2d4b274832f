"""iHarmony4-shaped data out of photos and masks, by the composites of `composites.make`.

    OUT/<subset>/composite_images/<img>_1_1.jpg, OUT/<subset>/masks/<img>_1.png, OUT/<subset>/real_images/<img>.jpg
    OUT/<subset>/photos/<name>.jpg (the photo as it was, for trainers that make composites of their own)
    OUT/IHD_train.txt, OUT/IHD_test.txt (paths from OUT), OUT/manifest.jsonl (how each was made), OUT/settings.json

The real picture has a look of its own, so each composite has its own: <img> is <name>-<foreground>-<n>. Every composite
depends on the seed, its foreground and its number alone, not on the number of workers nor on what was made before; it
carries its own line of the manifest as the file's comment, so a run that was killed goes on where it stood.
"""

import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from . import folder, workers
from .making import Made, Maker, Task
from .sources import Entry, digest, reference_pools, side

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What decides a data set.

    per_mask: composites for each foreground. size: short side of what is written; larger photos are scaled down (0:
    never). test_share: share of the scenes that goes into IHD_test.txt. seed: decides the split and every change.
    """

    per_mask: int = 4
    size: int = 512
    test_share: float = 0.08
    seed: int = 0


def build(entries: list[Entry], output: Path, settings: Settings, processes: int = 1) -> Made:
    """Makes what is not there yet.

    Args:
        entries: the photos; where one has no mask at all, a foreground is segmented in it.
        output: the data set's folder.
        processes: the result is the same for any number.

    Returns:
        Rows of the manifest, reasons why foregrounds were left out.

    Raises:
        InputError: inputs that do not fit, or of which no composite can be made.
        OSError: the disk fails.
    """
    from tqdm import tqdm

    kept = {"seed": settings.seed, "size": settings.size, "test_share": settings.test_share}
    folder.keep_settings(output, kept)
    folder.remove_unfinished(output)  # of a run that was killed
    tasks = plan(entries, settings)
    pools = reference_pools(entries, settings.seed, settings.test_share)
    maker = Maker(output, settings.seed, settings.size, settings.per_mask, pools)
    rows: list[folder.Row] = []
    failures: list[str] = []
    try:
        with tqdm(total=len(tasks), desc="make-composites", unit="photo", smoothing=0.05) as bar:
            for made, failed in workers.results(maker, tasks, processes):
                rows += made
                failures += failed
                bar.update()
    except BaseException:
        folder.remove_unfinished(output)  # of workers that were stopped
        raise
    for failure in failures:
        log.warning("left out: %s", failure)
    if not rows:
        raise InputError(
            f"no composite could be made from {len(tasks)} photos; the first reason: "
            f"{failures[0] if failures else 'no foreground fits'}"
        )
    folder.write_lists(output, rows)
    return rows, failures


def plan(entries: list[Entry], settings: Settings) -> list[Task]:
    """The tasks, one a photo. A photo that comes with masks and without has its masks."""
    photos: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.mask:
            photos[entry.image].append(entry)
    given = {image: tuple(enumerate(masked, 1)) for image, masked in photos.items()}
    for entry in entries:
        photos.setdefault(entry.image, [entry])
    names = _names([entry for found in photos.values() for entry in found])
    tasks = [
        Task(found[0], *names[image], side(found[0], settings.seed, settings.test_share), given.get(image, ()))
        for image, found in photos.items()
    ]
    return sorted(tasks, key=lambda task: task.entry.key)


def _names(entries: list[Entry]) -> dict[str, tuple[str, str]]:
    """{image: (name, subset)}, each pair once."""
    names: dict[str, tuple[str, str]] = {}
    taken = set()
    for entry in sorted(entries, key=lambda entry: entry.key):
        if entry.image in names:
            continue
        pair = _clean(Path(entry.image).stem), _clean(entry.source)
        if pair in taken:
            pair = f"{pair[0]}-{digest(entry.key) % 16**8:08x}", pair[1]
        taken.add(pair)
        names[entry.image] = pair
    return names


def _clean(name: str) -> str:
    """Letters, digits and hyphens: an underscore would break <img>_<mask>_<n>."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "photo"
