"""Which files go together: composite, mask, result and sheet of one picture, or of each in a folder."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import images
from ..lut import check_name


@dataclass(frozen=True)
class Job:
    """The files of one picture, or the folders of many; sheet: where the comparison sheet goes, or None.
    lut: where the change of colour of one picture goes, or None."""

    composite: Path
    mask: Path
    out: Path
    sheet: Path | None = None
    lut: Path | None = None

    @property
    def done(self) -> bool:
        return all(
            os.path.isfile(path) and os.path.getsize(path) for path in (self.out, self.sheet) if path is not None
        )


def check_single(job: Job) -> None:
    """InputError where an output of one picture cannot be written or would replace an input."""
    if job.mask.is_dir():
        raise InputError(
            f"{job.composite} is one picture but {job.mask} is a folder; give one mask, or folders for all three"
        )
    if job.lut is not None:
        check_name(job.lut)
    for path in (job.out, job.sheet):
        if path is None:
            continue
        images.check_output(path)
        if any(_same(path, source) for source in (job.composite, job.mask)):
            raise InputError(f"{path} would be written over an input; give the result another name")
    if job.sheet is not None and _same(job.sheet, job.out):
        raise InputError(f"{job.sheet} cannot be both the result and the sheet; give them different names")


def pairs(folders: Job) -> tuple[list[Job], list[tuple[str, str]]]:
    """The jobs of a folder, sorted by name, and (name, reason) of the composites that cannot be one.

    InputError for unusable folders.
    """
    if not folders.mask.is_dir():
        raise InputError(f"{folders.composite} is a folder but {folders.mask} is none; give a folder of masks")
    outputs = [path for path in (folders.out, folders.sheet) if path is not None]
    for path in outputs:
        if (os.path.lexists(path) and not path.is_dir()) or path.suffix.lower() in images.WRITABLE:
            raise InputError(
                f"{folders.composite} is a folder, so {path} must be a folder too; give the name of a folder"
            )
    every = [folders.composite, folders.mask, *outputs]
    if len({os.path.realpath(path) for path in every}) < len(every):
        raise InputError(f"the folders must differ: {', '.join(map(str, every))}; give each a folder of its own")
    masks: dict[str, list[Path]] = {}
    for path in _pictures(folders.mask):
        masks.setdefault(path.stem, []).append(path)
    composites = list(_pictures(folders.composite))
    if not composites:
        raise InputError(f"{folders.composite} holds no picture; expected {', '.join(images.READABLE)} directly in it")
    jobs: list[Job] = []
    failures: list[tuple[str, str]] = []
    taken: dict[Path, str] = {}
    for composite in composites:
        stem = composite.stem
        found = masks.get(stem) or masks.get(stem.rpartition("_")[0], [])
        out = folders.out / (composite.name if composite.suffix.lower() in images.WRITABLE else f"{stem}.png")
        sheet = None if folders.sheet is None else folders.sheet / f"{stem}.png"
        other = taken.get(out) or (taken.get(sheet) if sheet else None)
        if len(found) != 1:
            names = ", ".join(path.name for path in found)
            what = (
                f"several masks: {names}; keep one"
                if found
                else f"no mask in {folders.mask}; expected {stem}.png or, as in iHarmony4, that of <img>_<mask>"
            )
            failures.append((composite.name, what))
        elif other:
            failures.append((composite.name, f"its result would have the name of that of {other}; rename one of them"))
        else:
            taken.update({out: composite.name} if sheet is None else {out: composite.name, sheet: composite.name})
            jobs.append(Job(composite, found[0], out, sheet))
    return jobs, failures


def _pictures(folder: Path) -> Iterable[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in images.READABLE and not path.name.startswith(".")
    )


def _same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)
