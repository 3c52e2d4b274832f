"""The lists and the folders of iHarmony4: which composite, mask and real picture belong together.

Layout (REFERENCE: the published data set)::

    ROOT/IHD_train.txt, ROOT/IHD_test.txt           one composite a line, as a path from ROOT
    ROOT/<subset>/composite_images/<img>_<mask>_<n>.jpg
    ROOT/<subset>/masks/<img>_<mask>.png
    ROOT/<subset>/real_images/<img>.jpg
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..errors import InputError

COMPOSITES, MASKS, REALS = "composite_images", "masks", "real_images"
MANIFEST = "manifest.jsonl"  # of a set made by `make-composites`
# In the order in which they are looked for; the published data has JPEG pictures and PNG masks.
PICTURE_EXTENSIONS = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG", ".webp", ".bmp", ".tif", ".tiff")
MASK_EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp", ".bmp", ".tif", ".tiff")


class Triple(NamedTuple):
    """The three files of one pair, and the subset (the first folder of its path) that it counts for."""

    composite: Path
    mask: Path
    real: Path
    subset: str


def located(given: Path, default: str) -> tuple[Path, str]:
    """(folder, name of the list) of a data set, given as its folder, whose list is then `default`, or as a list in
    it.
    """
    return (given.parent, given.name) if os.path.isfile(given) else (given, default)


def pairs(root: str | os.PathLike, list_file: str | os.PathLike) -> list[Triple]:
    """The pairs that a list names, in its order.

    Args:
        root: folder of the data set.
        list_file: the list: a path from `root` (`IHD_test.txt`) or, where `root` has none, any path. Empty lines are
            passed over.

    Returns:
        One `Triple` a line. The files themselves need not exist: whoever opens them reports them. Where a mask or a
        real picture exists under another extension than the published one (a real picture saved as PNG), that file is
        named.

    Raises:
        ValueError: no such folder or list, a list that is no text or that names nothing, a line that is no path of the
            layout above (list and line number are named).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"No data set folder {root}: expected a folder with {COMPOSITES} somewhere below it "
            "and a list like IHD_test.txt"
        )
    path = _find_list(root, Path(list_file))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"The list {path} is no UTF-8 text ({error.reason}): expected one composite path a line"
        ) from error
    triples = [
        _triple(root, line.strip(), f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not triples:
        raise InputError(
            f"The list {path} names no picture: expected one composite path a line, "
            f"like HCOCO/{COMPOSITES}/c100_1_1.jpg"
        )
    return triples


def local_light(root: str | os.PathLike) -> dict[str, bool]:
    """Whether light varies over the foreground, for each composite (a path from `root`) of which the manifest tells.

    Empty where there is no manifest, or one that does not say. InputError for a manifest that is not one JSON object a
    line.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error}); make the data set again") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object; make the data set again")
        if isinstance(row.get("local"), bool) and isinstance(row.get("composite"), str):
            found[row["composite"]] = row["local"]
    return found


def _find_list(root: Path, list_file: Path) -> Path:
    for path in (root / list_file, list_file):
        if os.path.isfile(path):
            return path
    there = sorted(entry.name for entry in root.glob("*.txt"))
    lists = ", ".join(there) or "none"
    raise InputError(
        f"No list {list_file} in {root}, nor as a path of its own; lists there: {lists}. Name one that exists"
    )


def _triple(root: Path, entry: str, where: str) -> Triple:
    relative = PurePosixPath(entry.replace("\\", "/"))
    names = relative.stem.rsplit("_", 2)
    if relative.is_absolute() or ".." in relative.parts or len(relative.parts) < 2 or relative.parts[-2] != COMPOSITES:
        expected = f"a path from the data set's root like HCOCO/{COMPOSITES}/c100_1_1.jpg"
        raise InputError(f"{where}: {entry!r} is no composite of the data set; expected {expected}")
    if len(names) != 3 or not all(names) or not relative.suffix:
        expected = "a name like <img>_<mask>_<n>.jpg (c100_1_1.jpg)"
        raise InputError(f"{where}: cannot tell mask and real picture of {entry!r}; expected {expected}")
    image, mask, _ = names
    folder = root.joinpath(*relative.parts[:-2])
    subset = relative.parts[0] if len(relative.parts) > 2 else root.resolve().name
    return Triple(
        composite=root.joinpath(*relative.parts),
        mask=_existing(folder / MASKS, f"{image}_{mask}", MASK_EXTENSIONS),
        real=_existing(folder / REALS, image, PICTURE_EXTENSIONS),
        subset=subset,
    )


def _existing(folder: Path, stem: str, extensions: tuple[str, ...]) -> Path:
    """The file of that stem under the first extension that exists; the published extension where none does."""
    candidates = [folder / (stem + extension) for extension in extensions]
    return next((path for path in candidates if os.path.isfile(path)), candidates[0])
