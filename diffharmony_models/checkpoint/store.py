"""Writing a checkpoint as one file, and making one of a folder.

The file is written by hand, not by safetensors' `save_file`: that begins the data and each tensor wherever it happens
to, and what does not begin at a multiple of 64 bytes has to be copied when it is read; and it wants all tensors in the
new dtype in memory at once.
"""

import json
import os
import struct
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import InputError
from ..files import writing
from . import configs, files, folders, parts
from .kinds import KINDS, PARTS
from .reading import FORMAT, Checkpoint, Reader, check_null_text, prediction_type, read

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}

Tensors = dict[str, tuple[torch.Tensor, torch.dtype]]  # and what each is stored in


def write(checkpoint: Checkpoint, path: str | Path, dtype: torch.dtype | str | None = None) -> None:
    """Writes one safetensors file, whole or not at all; see `files.writing.replacing`.

    dtype: "fp16", "bf16", "fp32" or the torch dtype that all weights are stored in; None keeps each as it is. The null
    text stays float32. Raises InputError for parts that do not fit their config, values that are not finite in that
    dtype, or nothing to write; OSError when the disk does not take it. What a killed run has left of the same target
    is removed.
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
        "prediction_type": prediction_type(checkpoint.prediction_type, checkpoint.name),
        "resolution": str(configs.resolution(checkpoint.resolution, checkpoint.name)),
        "steps": str(configs.steps(checkpoint.steps, checkpoint.name)),
    }
    tensors: Tensors = {}
    for kind, part in checkpoint.parts.items():
        part = parts.checked(kind, part, checkpoint.name)
        metadata[kind] = json.dumps(part.config, sort_keys=True)
        tensors |= {f"{kind}.{key}": (tensor, dtype or tensor.dtype) for key, tensor in part.state.items()}
    if checkpoint.null_text is not None:
        check_null_text(checkpoint, checkpoint.name)
        tensors["null_text"] = (checkpoint.null_text, torch.float32)
    if not tensors:
        raise InputError(f"Nothing to write to {path}: the checkpoint {checkpoint.name} has no part.")
    writing.remove_leftovers(path.parent, path.name)
    with writing.replacing(path) as unfinished, open(unfinished, "wb") as file:
        _stream(file, tensors, metadata)


def convert(source: str | Path, target: str | Path, dtype: torch.dtype | str | None = None) -> Checkpoint:
    """Makes one file of a folder (or of another file) and returns its content.

    Raises InputError where the target is one of the source's own files, else as `Reader` and `write`.
    """
    if os.path.exists(target) and os.path.exists(source):
        inside = Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source))
        if inside or any(os.path.samefile(target, file) for file in folders.sources(Path(os.path.abspath(source)))):
            raise InputError(f"{target} would be written over its source. Give another name.")
    write(Reader(source).checkpoint(settled=False), target, dtype)
    return read(target)


def describe(checkpoint: Checkpoint) -> str:
    """One line a part, for people: parameters, dtype, channels, widths."""
    lines = [
        f"{checkpoint.name}: resolution {checkpoint.resolution}, steps {checkpoint.steps}, prediction type "
        f"{checkpoint.prediction_type}"
    ]
    for kind in PARTS:
        part, words = checkpoint.parts.get(kind), "none"
        if part is not None:
            count = sum(tensor.numel() for tensor in part.state.values()) / 1e6
            dtypes = "/".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in part.state.values()}))
            words = f"{count:.1f} M parameters in {dtypes}"
            if "block_out_channels" in part.config:
                widths = "/".join(map(str, part.config["block_out_channels"]))
                words += f", {part.config['in_channels']} channels in, widths {widths}"
        lines.append(f"  {KINDS[kind].title:<11}  {words}")
    null_text = checkpoint.null_text
    lines.append(f"  {'null text':<11}  " + ("none" if null_text is None else " x ".join(map(str, null_text.shape))))
    return "\n".join(lines)


def _stream(file: BinaryIO, tensors: Tensors, metadata: dict[str, str]) -> None:
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
        if not parts.is_finite(tensor):
            raise InputError(
                f"Not written: {name} holds NaN or infinity as {dtype}. Where fp16 is too narrow take bf16 or fp32; "
                "else get or train these weights again."
            )
        file.write(tensor.reshape(-1).view(torch.uint8).numpy())
