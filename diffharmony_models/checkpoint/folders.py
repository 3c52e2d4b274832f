"""Which checkpoint a folder is: the rules by which it is read, and by which a list offers it.

A checkpoint is one file, one part's folder (weights beside a config.json), or a pipeline: a folder with `unet/`, whose
other folders are its parts too, and beside which the refiner and the Harmony-VAE may lie, as they are published. A
folder around one pipeline, such as the unpacked zip, stands for that one. A part is known by its config, but for the
UNet: the inverse model's (it makes composites out of real images) looks the same, and is published in a pipeline
without `unet/`.
"""

import logging
import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .files import entries, read_json
from .kinds import KINDS, of_config
from .rules import few

log = logging.getLogger(__name__)

_ENDS = (
    ".safetensors",
    ".safetensors.index.json",
    ".safetensors.index.fp16.json",
    ".bin",
    ".bin.index.json",
    ".fp16.safetensors",
    ".fp16.bin",
)
_STANDARD = [stem + end for end in _ENDS for stem in ("diffusion_pytorch_model", "model", "pytorch_model")]
_MOST_SIBLINGS = 1000
_DEPTH = 4  # of a list
_MOST_ENTRIES = 50_000  # below one folder of models: a list that takes longer to make stops the page


@dataclass(frozen=True)
class Place:
    """Where a part lies: a folder with its config.json."""

    kind: str  # of `KINDS`
    folder: Path
    config: dict

    def weights(self) -> list[Path]:
        """Its weight files, several where they are shards."""
        file = _weight_file(self.folder)
        return _shards(file) if file.suffix == ".json" else [file]

    def sources(self) -> list[Path]:
        """All files that say what it is."""
        return [self.folder / "config.json", _weight_file(self.folder), *self.weights()]


def find(path: Path) -> tuple[dict[str, Place], Path]:
    """The parts of the checkpoint that a folder is, by kind, and the file in which its scheduler is described.

    InputError where there is none, where only the inverse model is, and where it is not clear which part is meant.
    """
    if place := _place(path):
        check_harmonizing(place.kind, path)
        return {place.kind: place}, scheduler_of(path)
    pipeline = path if _is_pipeline(path) else _pipeline_in(path)
    parts = _parts(pipeline)
    if "unet" not in parts:
        raise InputError(f"{pipeline / 'unet'}: no config.json of a UNet there. Get the whole folder again.")
    for kind, place in _beside(pipeline).items():
        parts.setdefault(kind, place)
    return parts, scheduler_of(pipeline / "unet")


def sources(path: Path) -> list[Path]:
    """The files that make up the checkpoint at a path."""
    if os.path.isdir(path):
        parts, scheduler = find(path)
        files = [scheduler, *(file for place in parts.values() for file in place.sources())]
    else:
        files = [path, path.parent / "config.json", scheduler_of(path.parent)]
    return sorted({file for file in files if os.path.isfile(file)})


def config_of(folder: Path) -> dict | None:
    """The config.json in a folder; None where there is none."""
    path = folder / "config.json"
    return read_json(path) if os.path.lexists(path) else None


def scheduler_of(folder: Path) -> Path:
    """Where the scheduler that belongs to a part's folder is described."""
    return folder.parent / "scheduler" / "scheduler_config.json"


def check_harmonizing(kind: str, folder: Path) -> None:
    """InputError for the UNet of a pipeline that has it elsewhere than in unet/."""
    if _is_another_models(kind, folder):
        raise InputError(
            f"{folder}: a UNet that is not in its pipeline's unet/, as that of the published inverse model (it makes "
            "composites out of real images, it cannot harmonize). Point at the harmonizing one, published as base/."
        )


def is_checkpoint(path: Path) -> bool:
    """Whether a list offers what lies there: a .safetensors file, a pipeline or a part's folder. False, too, for what
    cannot be read."""
    return (path.suffix == ".safetensors" and os.path.isfile(path)) or _is_pipeline(path) or _is_part(path)


def below(root: Path) -> tuple[list[str], dict[str, int | None]]:
    """The names of the checkpoints in a folder of models, which is none itself: paths from there, with "/".

    Also when each folder that was looked at had last `changed`: as long as none has again, the names stand. What cannot
    be read is left out.

    Level by level, so that where there is too much it is the deepest that is not seen. No folder is entered twice, and
    links are entered last: where there are two ways to one, it has the name of the straight one.
    """
    found: list[str] = []
    seen: dict[str, int | None] = {}
    entered: set[str] = set()
    left = _MOST_ENTRIES
    waiting, links = deque([(root, "", _DEPTH)]), deque[tuple[Path, str, int]]()
    while (waiting or links) and left > 0:
        folder, prefix, depth = (waiting or links).popleft()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        seen[str(folder)] = changed(folder)
        try:
            there = entries(folder)
        except InputError as error:
            log.warning("Left out of the list of checkpoints: %s", error)
            continue
        left -= len(there) if folder != root else 0
        parts, pipelines = [], False
        for entry in there:
            name = f"{prefix}{entry.name}"
            if not _is_text(name):
                continue
            if os.path.isdir(entry):
                seen[str(entry)] = changed(entry)
            if _is_pipeline(entry):
                pipelines = True
                found.append(name)
            elif _is_part(entry):
                parts.append(name)
            elif is_checkpoint(entry):
                found.append(name)
            elif depth and os.path.isdir(entry) and not os.path.isfile(entry / "model_index.json"):
                (links if os.path.islink(entry) else waiting).append((entry, f"{name}/", depth - 1))
        # A refiner beside a pipeline belongs to it; elsewhere it can be meant for itself.
        found += [] if pipelines else parts
    if left <= 0:
        log.warning("%s holds too much to look at all of it; put checkpoints into its upper folders.", root)
    return found, seen


def changed(folder: str | Path) -> int | None:
    """When a folder's entries last changed; None where there is none."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def _is_pipeline(folder: Path) -> bool:
    described = os.path.isfile(folder / "model_index.json") or os.path.isfile(folder / "unet" / "config.json")
    return described and os.path.isdir(folder / "unet")


def _is_another_models(kind: str, folder: Path) -> bool:
    return kind == "unet" and folder.name != "unet" and os.path.isfile(folder.parent / "model_index.json")


def _is_part(folder: Path) -> bool:
    try:
        place = _place(folder)
    except InputError:
        return False
    return place is not None and not _is_another_models(place.kind, folder)


def _is_text(name: str) -> bool:
    """Whether a page can show the name: not where its bytes are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pipeline_in(path: Path) -> Path:
    """The one pipeline in a folder."""
    found = {os.path.realpath(entry): entry for entry in reversed(entries(path)) if _is_pipeline(entry)}
    if len(found) > 1:
        names = few([str(entry / "unet") for entry in sorted(found.values())])
        raise InputError(f"{path} holds several UNets that could be meant: {names}. Point at one of their folders.")
    if not found and os.path.isfile(path / "model_index.json"):
        raise InputError(
            f"{path}: a pipeline without unet/, as the published inverse model is (it makes composites out of real "
            "images, it cannot harmonize). Point at the harmonizing one, published as base/, or at the folder of both."
        )
    if not found:
        raise InputError(
            f"{path}: nothing of DiffHarmony in this folder. Point at a diffusers pipeline (published as base/), at "
            "the folder in which it lies, at one part's folder (config.json beside its weights) or at one file."
        )
    return next(iter(found.values()))


def _place(folder: Path) -> Place | None:
    """The part in a folder; None where there is none."""
    config = config_of(folder) if os.path.isdir(folder) else None
    kind = of_config(config) if config else None
    return Place(kind, folder, config) if config and kind else None


def _parts(pipeline: Path) -> dict[str, Place]:
    """The parts in a pipeline's own folders."""
    places = [place for entry in entries(pipeline) if (place := _place(entry))]
    return _one_of_each([place for place in places if place.kind != "unet" or place.folder.name == "unet"], pipeline)


def _beside(pipeline: Path) -> dict[str, Place]:
    """The parts that are published beside a pipeline, where they lie there. What cannot be read is left out."""
    places = []
    try:
        siblings = entries(pipeline.parent)[:_MOST_SIBLINGS]
    except InputError as error:
        log.debug("Nothing is taken from beside %s: %s", pipeline, error)
        siblings = []
    for sibling in siblings:
        try:
            places.append(_place(sibling))
        except InputError as error:
            log.warning("Not taken from beside %s: %s", pipeline, error)
    return _one_of_each([place for place in places if place and KINDS[place.kind].beside], pipeline.parent)


def _one_of_each(places: list[Place], folder: Path) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for place in places:
        other = found.setdefault(place.kind, place)
        if os.path.realpath(other.folder) != os.path.realpath(place.folder):
            both = f"{other.folder}, {place.folder}"
            raise InputError(f"{folder} holds more than one {KINDS[place.kind].title}: {both}. Move one away.")
    return found


def _weight_file(folder: Path) -> Path:
    """The weights in a part's folder, or the index of their shards: those of a standard name, or the only ones."""
    there = [entry for entry in entries(folder) if os.path.isfile(entry)]
    names = {entry.name: entry for entry in there}
    standard = next((names[name] for name in _STANDARD if name in names), None)
    others = [entry for entry in there if entry.suffix in (".safetensors", ".bin")]
    if standard is None and len(others) > 1:
        listed = few([entry.name for entry in others])
        raise InputError(f"{folder} holds several weight files: {listed}. Point at one of them.")
    if standard is None and not others:
        raise InputError(f"{folder}: config.json stands there without its weights. Get the whole folder again.")
    return standard or others[0]


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names):
        raise InputError(f"{index}: lists no weight files that lie beside it. Get the whole folder again.")
    files = [index.parent / name for name in sorted(set(names))]
    if not all(os.path.isfile(file) for file in files):
        raise InputError(f"{index}: not all files that it lists lie beside it. Get the whole folder again.")
    return files
