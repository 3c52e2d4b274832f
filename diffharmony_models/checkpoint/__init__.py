"""What a weight file or folder is: reading, writing, converting and building.

Folders in the published layout (a diffusers pipeline with a refiner and a Harmony-VAE beside it), single parts, and our
one-file checkpoint: one safetensors file with `unet.*`, `vae.*`, `refiner.*`, `harmony_vae.*`, `color_regressor.*` in
diffusers' or our names, `null_text`, and each part's config as JSON in the metadata.
"""

import contextlib
import glob
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import InputError
from . import configs, files, folders
from . import parts as parts_of
from .configs import NAMES, shown
from .folders import FORMAT
from .parts import PARTS, Part, shapes

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
_ALL = (*PARTS, "null_text")
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = 5  # of the published sampling, and of every checkpoint that does not say otherwise


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
    resolution: int = 1024
    steps: int = STEPS


def read(path: str | Path, parts: tuple[str, ...] = _ALL) -> Checkpoint:
    """Reads a folder in the published layout, at any level, or one file (one-file checkpoint or one part's weights).

    parts: what to read of `PARTS` and "null_text"; the rest stays None. The null text of a folder is computed from its
    text encoder, the only thing here that imports transformers. Weights keep the dtype that they are stored in.
    Raises ValueError for files that are damaged, unsafe, of other widths than their config says, not finite, for
    UNets without 9 input channels, and where it is not clear which part is meant.
    """
    checkpoint = _read(path, parts)
    for kind in PARTS:
        part = getattr(checkpoint, kind)
        setattr(checkpoint, kind, part and parts_of.settled(part))
    return checkpoint


def _read(path: str | Path, parts: tuple[str, ...]) -> Checkpoint:
    path = Path(os.path.abspath(path))
    unknown = set(parts) - set(_ALL)
    if unknown:
        raise InputError(f"Unknown parts {sorted(unknown)}; expected some of {', '.join(_ALL)}.")
    found = folders.find(path)
    if found[0].kind == "checkpoint":
        return _read_one_file(found[0].where, parts)
    chosen, unit = folders.choose(path, found)
    scheduler = unit / "scheduler" / "scheduler_config.json"
    settings = files.read_json(scheduler) if os.path.lexists(scheduler) else {}
    name = path.stem if path.is_file() else path.name
    checkpoint = Checkpoint(name, prediction_type=_prediction_type(settings, scheduler))
    for kind in PARTS:
        if kind in chosen and kind in parts:
            setattr(checkpoint, kind, _load(chosen[kind]))
    if "text_encoder" in chosen and "null_text" in parts:
        encoder = chosen["text_encoder"]
        checkpoint.null_text = _null_text(parts_of.settled(_load(encoder)))
    _check_null_text(checkpoint, path)
    return checkpoint


def write(checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | str | None = None) -> None:
    """Writes one safetensors file, atomically: beside the target first, which is then replaced.

    dtype: "fp16", "bf16", "fp32" or the torch dtype that all weights are stored in; None keeps each as it is. The null
    text stays float32. Raises ValueError for parts that do not fit their config, values that are not finite in that
    dtype, or nothing to write; OSError when the disk does not take it. Neither leaves a file behind, and a file that
    was there before stays as it was. What a killed run has left of the same target is removed.
    """
    path = Path(path)
    if isinstance(dtype, str):
        dtype = _DTYPES.get(dtype, dtype)
    if dtype is not None and dtype not in _CODES:
        raise InputError(f'Weights cannot be stored as "{dtype}"; expected one of {", ".join(_DTYPES)}.')
    if path.suffix != ".safetensors" or not path.parent.is_dir() or path.is_dir():
        raise InputError(f"Cannot write {path}: give a name that ends in .safetensors, in a folder that exists.")
    metadata = {
        "format": FORMAT,
        "prediction_type": _prediction_type(vars(checkpoint), checkpoint.name),
        "resolution": str(configs.resolution(checkpoint.resolution, checkpoint.name)),
        "steps": str(_steps({"steps": str(checkpoint.steps)}, checkpoint.name)),
    }
    tensors: dict[str, tuple[torch.Tensor, torch.dtype]] = {}
    for kind in PARTS:
        part = getattr(checkpoint, kind)
        if part is not None:
            part = parts_of.checked(kind, part, checkpoint.name)
            metadata[kind] = json.dumps(part.config, sort_keys=True)
            tensors |= {f"{kind}.{key}": (tensor, dtype or tensor.dtype) for key, tensor in part.state.items()}
    if checkpoint.null_text is not None:
        _check_null_text(checkpoint, checkpoint.name)
        tensors["null_text"] = (checkpoint.null_text, torch.float32)
    if not tensors:
        raise InputError(f"Nothing to write to {path}: the checkpoint {checkpoint.name} has no part.")

    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(file)
            _stream(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (nothing was left behind)", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def convert(source: str | Path, target: str | Path, dtype: torch.dtype | str | None = None) -> Checkpoint:
    """Makes one file of a folder (or of another file) and returns its content.

    Raises InputError where the target is one of the source's own files, else as `read` and `write`.
    """
    if os.path.exists(target) and os.path.exists(source):
        inside = Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source))
        if inside or any(os.path.samefile(target, file) for file in folders.sources(Path(os.path.abspath(source)))):
            raise InputError(f"{target} would be written over its source. Give another name.")
    write(_read(source, _ALL), target, dtype)
    return read(target)


def bundled() -> Path:
    """Where the checkpoint that ships with the package lies."""
    return Path(__file__).parents[1] / "weights" / "diffharmony-small.safetensors"


def describe(checkpoint: Checkpoint) -> str:
    """One line a part, for people: parameters, dtype, channels, widths."""
    about = (
        f"resolution {checkpoint.resolution}, steps {checkpoint.steps}, prediction type {checkpoint.prediction_type}"
    )
    lines = [f"{checkpoint.name}: {about}"]
    for kind in PARTS:
        part, words = getattr(checkpoint, kind), "none"
        if part is not None:
            count = sum(tensor.numel() for tensor in part.state.values()) / 1e6
            dtypes = "/".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in part.state.values()}))
            facts = parts_of.facts(kind, shapes(part.state), checkpoint.name)
            words = f"{count:.1f} M parameters in {dtypes}"
            if "block_out_channels" in facts:
                widths = "/".join(map(str, facts["block_out_channels"]))
                words += f", {facts['in_channels']} channels in, widths {widths}"
        lines.append(f"  {NAMES[kind]:<11}  {words}")
    null_text = checkpoint.null_text
    lines.append(f"  {'null text':<11}  " + ("none" if null_text is None else " x ".join(map(str, null_text.shape))))
    return "\n".join(lines)


def part_from(module: torch.nn.Module) -> Part:
    """The Part of a network that was built here, e.g. after training: its config and its tensors (not copies)."""
    config = json.loads(module.to_json_string()) if hasattr(module, "to_json_string") else dict(module.config)
    return Part(config, module.state_dict())


def build_unet(part: Part) -> torch.nn.Module:
    """A diffusers UNet2DConditionModel in eval mode, strictly loaded.

    For all build functions: the module is in the part's dtype and its parameters *are* the part's tensors, not copies,
    so two modules of one part share them; copy one (`copy.deepcopy`) before training it. Raises ValueError for a config
    that describes no network of ours and, naming some keys, when tensors are missing, left over or of another shape.
    """
    return _build("unet", part)


def build_vae(part: Part) -> torch.nn.Module:
    """A diffusers AutoencoderKL in eval mode; see `build_unet`."""
    return _build("vae", part)


def build_refiner(part: Part) -> torch.nn.Module:
    """A `refiner.Refiner` in eval mode; see `build_unet`."""
    return _build("refiner", part)


def build_harmony_vae(part: Part) -> torch.nn.Module:
    """A `harmony_vae.HarmonyVAE` in eval mode; see `build_unet`."""
    return _build("harmony_vae", part)


def build_color_regressor(part: Part) -> torch.nn.Module:
    """A `networks.color_regressor.ColorRegressor` in eval mode; see `build_unet`."""
    return _build("color_regressor", part)


def _build(kind: str, part: Part) -> torch.nn.Module:
    part = parts_of.checked(kind, part)
    module = parts_of.skeleton(kind, part.config)
    module.load_state_dict(part.state, strict=True, assign=True)
    return module.eval()


def _load(found: folders.Found) -> Part:
    return parts_of.load(found.kind, found.files, found.config, found.where)


def _null_text(part: Part) -> torch.Tensor:
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


def _check_null_text(checkpoint: Checkpoint, where: object) -> None:
    null_text, unet = checkpoint.null_text, checkpoint.unet
    if null_text is None:
        return
    shape, tokens = list(null_text.shape), configs.TOKENS
    plain = len(shape) == 2 and 1 <= shape[0] <= tokens and shape[1] and null_text.dtype in parts_of.DTYPES
    if not plain or not parts_of.is_finite(null_text):
        raise InputError(
            f"{where}: a null text is [tokens, width], of floating point, finite and of at most {tokens} tokens; this "
            f"one is {shape} in {null_text.dtype}. Get or convert it again."
        )
    width = unet.config.get("cross_attention_dim") if unet else shape[1]
    if width != shape[1]:
        raise InputError(
            f"{where}: the UNet's text width is {width}, the null text's {shape[1]}. "
            "Use the text encoder that belongs to this UNet."
        )


def _prediction_type(settings: dict, where: object) -> str:
    """What a one-file checkpoint's metadata or a scheduler's config says."""
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        known = ", ".join(_PREDICTIONS)
        raise InputError(f'{where}: prediction type "{shown(prediction)}" is not supported, only {known} are.')
    return prediction


def _steps(metadata: dict[str, str], where: str | Path) -> int:
    """How many sampling steps a one-file checkpoint was made for."""
    steps = metadata.get("steps", str(STEPS))
    if not (steps.isascii() and steps.isdecimal() and len(steps) <= 4 and 1 <= int(steps) <= 1000):
        raise InputError(f'{where}: steps "{steps[:20]}" is no number of sampling steps, 1 to 1000. Convert it again.')
    return int(steps)


def _read_one_file(path: Path, parts: tuple[str, ...]) -> Checkpoint:
    with files.opened(path) as file:
        metadata = file.metadata() or {}
        keys: dict[str, list[str]] = {}
        for key in files.names(file):
            keys.setdefault(key.partition(".")[0], []).append(key)
        strange = [key for group in sorted(set(keys) - {*PARTS, "null_text"}) for key in keys[group]]
        if strange or ("null_text" in keys and keys["null_text"] != ["null_text"]):
            strange = strange or keys["null_text"]
            raise InputError(f"{path}: tensors of no part: {', '.join(strange[:3])}. Get or convert it again.")
        checkpoint = Checkpoint(
            path.stem,
            prediction_type=_prediction_type(metadata, path),
            resolution=configs.resolution(metadata.get("resolution", 1024), path),
            steps=_steps(metadata, path),
        )
        for kind in PARTS:
            if (kind in keys) != (kind in metadata):
                there, lacking = ("tensors", "config") if kind in keys else ("config", "tensors")
                raise InputError(f"{path}: the {NAMES[kind]} has {there} but no {lacking}. Get or convert it again.")
            if kind in keys and kind in parts:
                state = {key.partition(".")[2]: file.get_tensor(key) for key in keys[kind]}
                config = files.parse_json(metadata[kind], f"{path}, metadata {kind}")
                part = parts_of.checked(kind, Part(config, state), path)
                parts_of.check_finite(part, f"{path}, {NAMES[kind]}")
                setattr(checkpoint, kind, part)
        if "null_text" in keys and "null_text" in parts:
            checkpoint.null_text = file.get_tensor("null_text")
    _check_null_text(checkpoint, path)
    if checkpoint.null_text is not None:
        checkpoint.null_text = files.aligned(checkpoint.null_text.float())
    return checkpoint


def _stream(file: BinaryIO, tensors: dict[str, tuple[torch.Tensor, torch.dtype]], metadata: dict[str, str]) -> None:
    """Writes safetensors (header length in 8 bytes, JSON header, data) one converted tensor in memory at a time."""

    def place(name: str) -> tuple:
        """First what keeps the next tensor aligned, and so need not be copied when it is read."""
        tensor, dtype = tensors[name]
        return tensor.numel() * dtype.itemsize % files.ALIGNMENT > 0, -dtype.itemsize, name

    order = sorted(tensors, key=place)
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name in order:
        tensor, dtype = tensors[name]
        begin, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % files.ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        tensor, dtype = tensors[name]
        tensor = tensor.detach().to("cpu", dtype).contiguous()
        if not parts_of.is_finite(tensor):
            raise InputError(
                f"Not written: {name} holds NaN or infinity as {dtype}. Where fp16 is too narrow take bf16 or fp32; "
                "else get or train these weights again."
            )
        file.write(tensor.reshape(-1).view(torch.uint8).numpy())


def _lock(file: BinaryIO) -> None:
    """Marks a file as one that somebody is writing, as long as it is open. OSError where another process does."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_leftovers(path: Path) -> None:
    """Removes unfinished files of the same target that nobody is writing any more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            with open(left, "rb") as file:
                _lock(file)
            left.unlink()
