"""Which parts a folder holds, and which of them belong together.

A part's role does not follow from its shapes: the inverse model's UNet (it makes composites out of real images) has
those of the harmonizing one. So it follows from where the part stands: in a pipeline (a folder with a model_index.json)
the harmonizing UNet lies in `unet/`, while the inverse one is published in a pipeline without it. Where two UNets could
be meant, nobody guesses.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .configs import NAMES, few, shown
from .files import check_regular, entries, line, peek, read_json
from .parts import class_of, kind_of_config, kind_of_keys, strangers

log = logging.getLogger(__name__)

FORMAT = "diffharmony"

_DEPTH = 3  # a folder around the unpacked zip, base/, unet/
_MOST_FOLDERS = 1000
_VARIANTS = r"(?:\.(?:fp16|bf16|fp32|ema|non_ema|non-ema))*"
_WEIGHTS = re.compile(rf"(.+?)({_VARIANTS})\.(safetensors|bin)(?:\.index({_VARIANTS})\.json)?$")
_STANDARD = ("diffusion_pytorch_model", "model", "pytorch_model")


@dataclass
class Found:
    """Something that a folder holds: a part (kind of `PARTS`), a "text_encoder", or a one-file "checkpoint"."""

    kind: str
    files: list[Path]  # several where the weights are in shards, none where they are missing
    config: dict | None
    where: Path  # its folder, or the file where that stands for itself
    unit: Path  # the folder in which it stands beside other parts
    pipeline: Path | None  # the folder with a model_index.json that it is in

    @property
    def harmonizing(self) -> bool:
        """Whether this can be the harmonizing UNet: one that stands alone, or its pipeline's own."""
        return self.kind == "unet" and (
            self.pipeline is None or self.pipeline / "unet" in (self.where, self.where.parent)
        )

    @property
    def channels(self) -> object:
        """What the config says, which can be anything, else what the weights have."""
        if self.config and "in_channels" in self.config:
            return self.config["in_channels"]
        shape = peek(self.files[0])[1].get("conv_in.weight", ()) if self.files else ()
        return shape[1] if len(shape) == 4 else None


def find(path: Path) -> list[Found]:
    """Everything in a folder (as deep as around the unpacked zip) or of one file. ValueError where there is nothing."""
    if os.path.isdir(path):
        found = _scan(path, _DEPTH, _pipeline_above(path))
        if not found:
            raise InputError(
                f"{path}: nothing of DiffHarmony in this folder. Point at the unpacked one (with base/, refinement/), "
                "a diffusers pipeline, one part's folder (config.json beside its weights) or one file."
            )
        if len(found) > 1 and any(each.kind == "checkpoint" for each in found):
            raise InputError(f"{path} holds several checkpoints: {_listed(found)}. Point at one of them.")
        return found
    if not os.path.lexists(path):
        raise InputError(f"{path}: there is no such file or folder. Give a checkpoint's file or its folder.")
    check_regular(path)
    if path.suffix == ".json":
        raise InputError(f"{path} holds no weights. Point at its folder instead.")
    metadata, shapes = peek(path)
    if metadata.get("format") == FORMAT:
        return [Found("checkpoint", [path], None, path, path.parent, None)]
    config = config_of(path.parent)
    kind = kind_of_config(config) if config and class_of(config) else kind_of_keys(shapes)
    if kind is None:
        words = f"Its tensors: {strangers(shapes)}"
        if config and kind_of_keys(shapes):
            words = f"The config.json beside it is that of a {shown(class_of(config))}"
        raise InputError(f"{path}: not a part of DiffHarmony. {words}.")
    return [Found(kind, [path], config, path, path.parent.parent, _pipeline_above(path.parent))]


def choose(path: Path, found: list[Found]) -> tuple[dict[str, Found], Path]:
    """The parts that make up one checkpoint, by kind ("text_encoder" too), and the folder where its scheduler/ stands.

    ValueError where only the inverse model is there, and where it is not clear which part is meant.
    """
    unets = [each for each in found if each.harmonizing]
    own = {each.pipeline for each in unets}
    headless = {each.pipeline for each in found if each.pipeline and each.pipeline.is_relative_to(path)}
    headless |= {each.pipeline for each in found if each.pipeline and each.kind == "unet" and not each.harmonizing}
    headless -= own
    kept = [each for each in found if each.pipeline not in headless and (each.harmonizing or each.kind != "unet")]
    if not kept:
        raise InputError(
            f"{path}: a pipeline without unet/, as the published inverse model is (it makes composites out of real "
            "images, it cannot harmonize). Point at the harmonizing one, published as base/, or at the folder of both."
        )
    for folder in sorted(headless):
        log.warning("%s is a pipeline without unet/, as the inverse model is, and is left out.", folder)

    nine = [each for each in unets if each.channels == 9]
    if len(nine) > 1:
        raise InputError(f"{path} holds several UNets that could be meant: {_listed(nine)}. Point at one of them.")
    unet = next(iter(nine or unets), None)
    unit = unet.unit if unet else path
    chosen = {"unet": unet} if unet else {}
    for kind in NAMES:
        of_kind = [each for each in kept if each.kind == kind]
        near = [each for each in of_kind if each.unit == unit] or of_kind
        if kind != "unet" and len(near) > 1:
            raise InputError(
                f"{path} holds more than one {NAMES[kind]}: {_listed(near)}. Point at one, or move one away."
            )
        if kind != "unet" and near:
            chosen[kind] = near[0]
    if unet and unet.pipeline == path:
        for kind, each in _beside(path).items():
            chosen.setdefault(kind, each)
    return chosen, unit


def sources(path: Path) -> list[Path]:
    """The files that make up the checkpoint which `path` leads to."""
    files = [path, path.parent / "config.json"]
    if os.path.isdir(path):
        found = find(path)
        chosen, unit = ({}, path) if found[0].kind == "checkpoint" else choose(path, found)
        files = [*found[0].files, unit / "scheduler" / "scheduler_config.json"]
        for part in chosen.values():
            folder = part.where.parent if part.where in part.files else part.where
            files += [*part.files, folder / "config.json", *folder.glob("*.index*.json")]
    return sorted({file for file in files if os.path.isfile(file)})


def config_of(folder: Path) -> dict | None:
    """The config.json in a folder; None where there is none."""
    path = folder / "config.json"
    return read_json(path) if os.path.lexists(path) else None


def _scan(
    folder: Path,
    depth: int,
    pipeline: Path | None,
    loose: bool = True,
    above: tuple[Path, ...] = (),
    budget: Iterator[int] | None = None,
) -> list[Found]:
    """All parts in a folder and `depth` levels below. loose: also safetensors files without a config.json. above: the
    folders on the way here, into which no link leads back. budget: how many more folders are looked into."""
    budget = iter(range(_MOST_FOLDERS)) if budget is None else budget
    if next(budget, None) is None:
        raise InputError(
            f"{folder}: the {_MOST_FOLDERS} folders before it are too many. Point at the checkpoint itself."
        )
    here = Path(os.path.realpath(folder))
    if here in above:
        return []
    is_pipeline = os.path.isfile(folder / "model_index.json")
    pipeline = folder if is_pipeline else pipeline
    config = None if is_pipeline else config_of(folder)
    there = entries(folder)
    sets = _weight_sets(folder, there, one=config is not None)
    if config is not None:
        kind = kind_of_config(config)
        if kind is None and sets and class_of(config) is None:
            kind = kind_of_keys(peek(sets[0][0])[1])
        if kind or sets:
            return [Found(kind, sets[0] if sets else [], config, folder, folder.parent, pipeline)] if kind else []
    found = []
    for files in sets if loose else []:
        if files[0].suffix == ".safetensors":
            metadata, shapes = peek(files[0])
            kind = "checkpoint" if metadata.get("format") == FORMAT else kind_of_keys(shapes)
            if kind:
                found.append(Found(kind, files, None, files[0], folder, pipeline))
    for child in there if depth else []:
        if os.path.isdir(child):
            found += _scan(child, depth - 1, pipeline, loose, (*above, here), budget)
    return found


def _beside(path: Path) -> dict[str, Found]:
    """Refiner and Harmony-VAE beside a pipeline; none where another UNet there may be the one that they belong to."""
    others = []
    try:
        siblings = [each for each in entries(path.parent) if each != path and os.path.isdir(each)]
    except InputError as error:
        log.debug("Nothing is taken from beside %s: %s", path, line(error))
        siblings = []
    for sibling in siblings[:_MOST_FOLDERS]:
        try:
            others += _scan(sibling, 1, None, loose=False)
        except InputError as error:
            log.debug("%s is left out: %s", sibling, line(error))
    rivals = [each for each in others if each.harmonizing and each.channels == 9]
    chosen = {}
    for kind in ("refiner", "harmony_vae"):
        lone = [each for each in others if each.kind == kind and each.unit == path.parent]
        if len(lone) == 1 and not rivals:
            log.info("The %s beside %s is taken: %s.", NAMES[kind], path, _listed(lone))
            chosen[kind] = lone[0]
        elif lone:
            log.warning("Not taken, for it is not clear what belongs to %s: %s.", path, _listed(lone + rivals))
    return chosen


def _pipeline_above(folder: Path) -> Path | None:
    return next((each for each in list(folder.parents)[:2] if os.path.isfile(each / "model_index.json")), None)


def _weight_sets(folder: Path, there: list[Path], one: bool) -> list[list[Path]]:
    """The weights in a folder, best first, one list of files (several: shards) for each name without its variant.

    Weights that are no EMA come last, full precision goes before half, safetensors before pickles. one: the folder is a
    part's, so where several stand there, one must have a standard name.
    """
    best: dict[str, tuple[tuple[bool, bool, bool], Path]] = {}
    for path in there:
        match = _WEIGHTS.match(path.name)
        if match and os.path.isfile(path) and not re.search(r"-\d{5}-of-\d{5}", path.name):
            stem, variant, suffix = match[1], match[2] + (match[4] or ""), match[3]
            group = "" if stem in _STANDARD else stem
            rank = (re.search("non.ema", variant) is not None, "16" in variant, suffix == "bin")
            best[group] = min(best.get(group, (rank, path)), (rank, path))
    if one and len(best) > 1 and "" not in best:
        names = few([path.name for _, path in best.values()])
        raise InputError(f"{folder} holds several weight files: {names}. Point at one of them.")
    files = [best[group][1] for group in sorted(best)]
    return [_shards(path) if path.suffix == ".json" else [path] for path in files]


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    names = list(names.values()) if isinstance(names, dict) else []
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names):
        raise InputError(f"{index}: lists no weight files that lie beside it. Get the whole folder again.")
    files = [index.parent / name for name in sorted(set(names))]
    if not all(os.path.isfile(file) for file in files):
        raise InputError(f"{index}: not all files that it lists lie beside it. Get the whole folder again.")
    return files


def _listed(found: list[Found]) -> str:
    return few([str(each.where) for each in found])
