"""Reading a checkpoint: it is opened once, and a part is read when it is asked for."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..errors import InputError
from . import configs, files, folders, kinds, parts
from .kinds import KINDS, PARTS
from .parts import Part
from .rules import shown
from .schemas import TOKENS

FORMAT = "diffharmony"
STEPS = 5  # of the published sampling, and of every checkpoint that does not say otherwise
RESOLUTION = 1024  # likewise
_PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass
class Checkpoint:
    """What one harmonizer consists of; a part that it lacks is None. null_text: [tokens, width], float32.
    resolution: side in pixels of the square whose area the checkpoint's stage 1 works at. steps: how many sampling
    steps it was made for."""

    name: str
    unet: Part | None = None
    vae: Part | None = None
    refiner: Part | None = None
    harmony_vae: Part | None = None
    color_regressor: Part | None = None
    null_text: torch.Tensor | None = None
    prediction_type: str = "epsilon"
    resolution: int = RESOLUTION
    steps: int = STEPS

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that it has, by kind."""
        return {kind: part for kind in PARTS if (part := getattr(self, kind)) is not None}


class Reader:
    """A checkpoint on disk. What it says of itself is read at once, a part when it is asked for.

    path: a one-file checkpoint, a part's weights beside their config.json, or a folder; see `folders`.
    name, prediction_type, resolution, steps: as `Checkpoint`'s.
    Everything here raises InputError for files that are damaged, unsafe, not finite, or of other shapes than their
    config says, for UNets without 9 input channels, and where it is not clear which part is meant.
    """

    def __init__(self, path: str | Path):
        self.path = path = Path(os.path.abspath(path))
        self.resolution, self.steps = RESOLUTION, STEPS
        self._parts: dict[str, Callable[[], Part]] = {}
        self._null_text: Callable[[], torch.Tensor] | None = None
        if os.path.isdir(path):
            self.name = path.name
            places, scheduler = folders.find(path)
            self._parts = {kind: partial(_part_of_folder, place) for kind, place in places.items()}
        else:
            self.name = path.stem
            file = _weight_file(path)
            if file.metadata.get("format") == FORMAT:
                self._open_whole(file)
                return
            scheduler = folders.scheduler_of(path.parent)
            kind, config = _described(file)
            self._parts = {kind: lambda: parts.loaded(kind, Part(config, file.state()), path)}
        settings = files.read_json(scheduler) if os.path.lexists(scheduler) else {}
        self.prediction_type = prediction_type(settings.get("prediction_type", "epsilon"), scheduler)

    def part(self, kind: str) -> Part | None:
        """A part, of `PARTS` or a folder's "text_encoder"; None where there is none. Weights keep the dtype that they
        are stored in, and take memory once they are used."""
        part = self._mapped(kind)
        return part and parts.settled(part)

    def null_text(self) -> torch.Tensor | None:
        """[tokens, width] in float32; None where there is none. That of a folder is computed from its text encoder,
        the only thing here that imports transformers."""
        if self._null_text:
            return self._null_text()
        encoder = self.part("text_encoder")
        return encoder and _encoded(encoder)

    def checkpoint(self, wanted: Collection[str] = (*PARTS, "null_text"), settled: bool = True) -> Checkpoint:
        """All that is there, or what is wanted of `PARTS` and "null_text". settled: as `part` gives them; else as they
        lie in the file, which is enough for writing them again."""
        if unknown := set(wanted) - {*PARTS, "null_text"}:
            raise InputError(f"Unknown parts {sorted(unknown)}; expected some of {', '.join(PARTS)}, null_text.")
        get = self.part if settled else self._mapped
        found = Checkpoint(self.name)
        for kind in (kind for kind in PARTS if kind in wanted):
            setattr(found, kind, get(kind))
        found.prediction_type, found.resolution, found.steps = self.prediction_type, self.resolution, self.steps
        found.null_text = self.null_text() if "null_text" in wanted else None
        check_null_text(found, self.path)
        return found

    def _mapped(self, kind: str) -> Part | None:
        return self._parts[kind]() if kind in self._parts else None

    def _open_whole(self, file: files.WeightFile) -> None:
        path, metadata = file.path, file.metadata
        there = {name.partition(".")[0] for name in file.names}
        strange = [name for name in file.names if name.partition(".")[0] not in PARTS and name != "null_text"]
        if strange:
            raise InputError(f"{path}: tensors of no part: {', '.join(strange[:3])}. Get or convert it again.")
        for kind in PARTS:
            if (kind in there) != (kind in metadata):
                has, lacks = ("tensors", "config") if kind in there else ("config", "tensors")
                raise InputError(f"{path}: the {KINDS[kind].title} has {has} but no {lacks}. Get or convert it again.")
            if kind in there:
                self._parts[kind] = partial(_part_of_file, kind, file)
        if "null_text" in there:
            self._null_text = partial(_null_text_of_file, file)
        self.prediction_type = prediction_type(metadata.get("prediction_type", "epsilon"), path)
        self.resolution = configs.resolution(metadata.get("resolution", RESOLUTION), path)
        self.steps = configs.steps(metadata.get("steps", STEPS), path)


def read(path: str | Path, parts: Collection[str] = (*PARTS, "null_text")) -> Checkpoint:
    """Reads all that lies at a path, or what `parts` names of `PARTS` and "null_text". See `Reader`."""
    return Reader(path).checkpoint(parts)


def prediction_type(value: object, where: object) -> str:
    """What a one-file checkpoint's metadata or a scheduler's config says. InputError for what is none."""
    if value not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        raise InputError(f'{where}: prediction type "{shown(value)}" is not supported, only {known} are.')
    return str(value)


def check_null_text(checkpoint: Checkpoint, where: object) -> None:
    """InputError for a null text of another shape, of no numbers, or not of the UNet's width."""
    null_text, unet = checkpoint.null_text, checkpoint.unet
    if null_text is None:
        return
    shape = list(null_text.shape)
    plain = len(shape) == 2 and 1 <= shape[0] <= TOKENS and shape[1] and null_text.dtype in parts.DTYPES
    if not plain or not parts.is_finite(null_text):
        raise InputError(
            f"{where}: a null text is [tokens, width], of floating point, finite and of at most {TOKENS} tokens; this "
            f"one is {shape} in {null_text.dtype}. Get or convert it again."
        )
    width = unet.config.get("cross_attention_dim") if unet else shape[1]
    if width != shape[1]:
        raise InputError(
            f"{where}: the UNet's text width is {width}, the null text's {shape[1]}. "
            "Use the text encoder that belongs to this UNet."
        )


def _weight_file(path: Path) -> files.WeightFile:
    if not os.path.lexists(path):
        raise InputError(f"{path}: there is no such file or folder. Give a checkpoint's file or its folder.")
    if path.suffix == ".json":
        raise InputError(f"{path} holds no weights. Point at its folder instead.")
    return files.WeightFile(path)


def _described(file: files.WeightFile) -> tuple[str, dict]:
    """The kind of part that a file holds, and the config beside it."""
    config = folders.config_of(file.path.parent)
    kind = kinds.of_tensors(file.names)
    if kind is None:
        raise InputError(f"{file.path}: not a part of DiffHarmony. Its tensors: {parts.strangers(file.names)}.")
    if config is None:
        raise InputError(
            f"{file.path}: the weights of a {KINDS[kind].title} without their config.json. Put that beside them."
        )
    described = kinds.of_config(config)
    if described is None:
        raise InputError(
            f"{file.path}: not a part of DiffHarmony. The config.json beside it is that of a "
            f"{shown(kinds.class_of(config))}."
        )
    folders.check_harmonizing(kind, file.path.parent)
    return described, config


def _part_of_folder(place: folders.Place) -> Part:
    state: dict[str, torch.Tensor] = {}
    for path in place.weights():
        state |= files.WeightFile(path).state()
    return parts.loaded(place.kind, Part(place.config, state), place.folder)


def _part_of_file(kind: str, file: files.WeightFile) -> Part:
    config = files.parse_json(file.metadata[kind], f"{file.path}, metadata {kind}")
    part = parts.checked(kind, Part(config, file.state(f"{kind}.")), file.path)
    parts.check_finite(part, f"{file.path}, {KINDS[kind].title}")
    return part


def _null_text_of_file(file: files.WeightFile) -> torch.Tensor:
    found = Checkpoint(file.path.stem, null_text=file.tensor("null_text"))
    check_null_text(found, file.path)
    return files.aligned(file.tensor("null_text").float())


def _encoded(part: Part) -> torch.Tensor:
    """The embedding of the empty string, [tokens, width] float32: CLIP's output for a start token, then end tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**part.config)).eval()
    state = {key: part.state[key.removeprefix("text_model.")].float() for key in model.state_dict()}
    model.load_state_dict(state, strict=True, assign=True)
    tokens = part.config["max_position_embeddings"]
    ids = torch.tensor([[49406] + [49407] * (tokens - 1)])
    with torch.no_grad():
        return model(input_ids=ids, position_ids=torch.arange(tokens)[None])[0][0]
