"""Where `make-composites` takes its photos from, and which side of the split they fall on."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import numpy as np

from ..errors import InputError

SETTINGS, MANIFEST, LISTS = "settings.json", "manifest.jsonl", {"train": "IHD_train.txt", "test": "IHD_test.txt"}
"""What `make-composites` writes into its folder."""

PHOTOS = "photos"
"""Beside the folders of iHarmony4: the photos as they were, without any look."""

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


FIELDS = ("image", "mask", "source", "group", "label", "licence")
"""What a line of an index may say; anything else in it is passed over."""


@dataclass(frozen=True)
class Entry:
    """A photo with a mask (white or opaque = foreground), or without one."""

    image: str
    mask: str | None
    source: str
    group: str  # the scene: all that shares source and group lies on one side of the split
    key: str  # names the entry wherever the files lie; seeds its generator
    label: str | None = None
    licence: str | None = None


def is_dataset(folder: Path) -> bool:
    """Whether a folder is one that `make-composites` fills, or iHarmony4 itself."""
    return any((folder / name).is_file() for name in (SETTINGS, LISTS["train"]))


def read_settings(folder: Path) -> dict:
    """What `make-composites` was run with; `seed` and `test_share` decide the split. InputError for any other file."""
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        seed, share = settings["seed"], settings["test_share"]
        if type(seed) is not int or type(share) not in (int, float) or not (seed >= 0 and 0 <= share < 1):
            raise ValueError(f"seed {seed!r}, test_share {share!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not what make-composites writes ({str(error)[:100]}). Make the data set again in another place."
        ) from error
    return settings


class Origin(NamedTuple):
    """What a manifest says of a composite: the photo as it was and the number of the foreground in it (None where the
    manifest does not say), whether the mask was given with the photo, and not segmented by us, and which of the
    `composites.KINDS` it is."""

    photo: Path | None
    foreground: int | None
    given: bool
    kind: str | None


def read_manifest(folder: Path) -> dict[str, Origin]:
    """{composite, as the lists name it: its origin}; nothing where there is no manifest, as in iHarmony4 itself.

    Raises:
        InputError: with the line's number, for what is no line of a manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            photo, foreground = row.get("photo"), row.get("foreground")
            label, kind = row["label"], row.get("kind")
            for value, wanted in (
                (row["composite"], str),
                (photo, str | None),
                (foreground, int | None),
                (label, str | None),
                (kind, str | None),
            ):
                if not isinstance(value, wanted):
                    raise TypeError(f"{value!r}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number} is not what make-composites writes ({str(error)[:80]}). Delete the file and "
                "start make-composites again."
            ) from error
        found[row["composite"]] = Origin(folder / photo if photo else None, foreground, label is not None, kind)
    return found


def read_index(path: str | Path) -> list[Entry]:
    """Entries of a JSON-lines file with `image` (path beside the file) and, optionally, `mask`, `source`, `group`,
    `label`, `licence`.

    Without `group` each photo is its own scene. Raises ValueError with the line's number for what is not such a line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"no index {path}: give a JSON-lines file with fields image and mask, or --photos and --masks folders"
        )
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error.reason}): expected one JSON object a line") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r}") from error
        if not isinstance(row, dict) or not row.get("image"):
            raise InputError(f"{path}, line {number}: expected a JSON object with an 'image' field, got {line[:80]!r}")
        for name in FIELDS:
            if not isinstance(row.get(name), (str, NoneType)):
                raise InputError(f"{path}, line {number}: expected text as {name!r}, got {str(row[name])[:80]!r}")
        image = row["image"]
        mask = row.get("mask")
        group = row.get("group") or Path(image).with_suffix("").as_posix()
        entries.append(
            Entry(
                image=str(path.parent / image),
                mask=str(path.parent / mask) if mask else None,
                source=str(row.get("source") or "own"),
                group=str(group),
                key=f"{image}|{mask or ''}",
                label=row.get("label"),
                licence=row.get("licence"),
            )
        )
    if not entries:
        raise InputError(f"{path} names no photo: expected one JSON object a line with image and mask")
    return entries


def read_folders(photos: str | Path, masks: str | Path | None = None) -> list[Entry]:
    """Entries of plain folders. The masks of `a.jpg` are `a.png`, `a_0.png`, `a_1.png`…; photos in one subfolder are
    one scene.

    Without `masks` the entries have none. Raises ValueError for a folder that is missing or where nothing fits.
    """
    photos = Path(photos)
    if not photos.is_dir() or (masks is not None and not Path(masks).is_dir()):
        raise InputError(
            f"no folder {masks if photos.is_dir() else photos}: give a folder of photos and one of masks with the same "
            "names"
        )
    files = _pictures(photos)
    if masks is None:
        found = [_own(file, photos, None) for file in files]
    else:
        by_name: dict[str, Path] = {}
        for file in _pictures(Path(masks)):
            by_name.setdefault(file.relative_to(masks).with_suffix("").as_posix(), file)
        names = {file.relative_to(photos).with_suffix("").as_posix(): file for file in files}
        found = []
        for name, mask in by_name.items():
            stem, _, number = name.rpartition("_")
            photo = names.get(name) or (names.get(stem) if number.isdigit() else None)
            if photo is not None:
                found.append(_own(photo, photos, mask))
    if not found:
        raise InputError(
            f"nothing to use in {photos}: expected pictures ({', '.join(sorted(PICTURES))}) and, for a.jpg, a mask "
            "a.png or a_0.png"
        )
    return found


def _own(photo: Path, root: Path, mask: Path | None) -> Entry:
    relative = photo.relative_to(root)
    scene = relative.parent.as_posix() if relative.parent.parts else relative.stem
    return Entry(
        str(photo),
        None if mask is None else str(mask),
        "own",
        scene,
        f"{relative.as_posix()}|{mask.name if mask else ''}",
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and not file.name.startswith(".")
    )


def digest(*parts: object) -> int:
    """A whole number below 2^64 that depends on the parts alone, the same on every machine."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")  # names need not be UTF-8
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def side(entry: Entry, seed: int, test_share: float) -> str:
    """ "train" or "test", for the whole scene that the entry belongs to."""
    return "test" if digest("split", seed, entry.source, entry.group) < test_share * 2**64 else "train"


Pools = dict[tuple[str, str, str | None], list[Entry]]
"""Possible references by (side, what they share, its value)."""


def reference_pools(entries: list[Entry], seed: int, test_share: float) -> Pools:
    """Possible references, which share the label, the source, or nothing. Never from the other side of the split."""
    pools: Pools = defaultdict(list)
    for entry in entries:
        where = side(entry, seed, test_share)
        if entry.mask and entry.label not in (None, "region"):
            pools[where, "label", entry.label].append(entry)
        if entry.mask:
            pools[where, "source", entry.source].append(entry)
        pools[where, "any", "mask" if entry.mask else "photo"].append(entry)
    return dict(pools)


def pick_reference(entry: Entry, where: str, pools: Pools, rng: np.random.Generator) -> Entry | None:
    """Another scene's entry: of the same label where there is one (7 times in 10), else of the same source or any, or a
    photo without mask.
    """
    ways: list[tuple[float, tuple[str, str | None]]] = [
        (0.7, ("label", entry.label)),
        (0.4, ("source", entry.source)),
        (0.5, ("any", "mask")),
        (1.0, ("any", "photo")),
        (1.0, ("any", "mask")),
    ]
    for chance, (kind, value) in ways:
        pool = pools.get((where, kind, value), ())
        if rng.random() < chance and pool:
            for _ in range(4):
                other = pool[rng.integers(len(pool))]
                if (other.source, other.group) != (entry.source, entry.group):
                    return other
    return None
