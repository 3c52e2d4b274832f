"""Files that somebody else made: each takes no more memory than it has bytes, and is named in every error."""

import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from . import pickles
from .configs import shown

ALIGNMENT = 64  # bytes: what torch's own memory has, so that kernels take the same way through mapped weights
_LARGEST_JSON = 16 << 20
_LARGEST_HEADER = 16 << 20
_MOST_TENSORS = 20_000
_LONGEST_NAME = 256
_MOST_ENTRIES = 100_000  # of one folder


def check_regular(path: Path) -> os.stat_result:
    """InputError unless the path leads to an ordinary file: a pipe or a device would be read for ever."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be opened ({line(error)}). Give a checkpoint's file or its folder."
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not an ordinary file. Give a checkpoint's file or its folder.")
    return found


def read_json(path: Path) -> dict:
    """The JSON object in a file."""
    size = check_regular(path).st_size
    if size > _LARGEST_JSON:
        raise InputError(f"{path}: larger than {_LARGEST_JSON >> 20} MB, which no such file is. Get it again.")
    try:
        with open(path, "rb") as file:
            return parse_json(file.read(size), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({line(error)}). Get it again.") from error


def parse_json(text: bytes | str, where: object) -> dict:
    """A JSON object. where: named in the InputError for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: damaged, not JSON ({line(error)}). Get it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object, found a {type(content).__name__}. Get it again.")
    return content


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files."""
    found = []
    try:
        with os.scandir(folder) as there:
            for number, entry in enumerate(there):
                if number == _MOST_ENTRIES:
                    raise InputError(f"{folder} has more than {_MOST_ENTRIES} entries. Point at the checkpoint itself.")
                if not entry.name.startswith("."):
                    found.append(folder / entry.name)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({line(error)}). See to its permissions, or move it away."
        ) from error
    return sorted(found)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file; its tensors are mapped, not copied."""
    size = check_regular(path).st_size
    try:
        with open(path, "rb") as raw:
            header = int.from_bytes(raw.read(8), "little")
        if _LARGEST_HEADER < header <= size:
            raise InputError(f"{path}: a header of {header} bytes, more than any checkpoint's. Get it again.")
        try:
            file = safe_open(path, "pt")
        except RuntimeError as error:  # torch could not map it
            raise InputError(f"{path}: {size} bytes, too large for this machine. Get it again.") from error
        with file:
            _check_names(names(file), path)
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({line(error)}). Get it again.") from error


def names(file: safe_open) -> list[str]:
    return list(file.keys())


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where it starts elsewhere than torch's own: kernels sum in another order there, and a
    picture would depend on the length of a file's header."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone(memory_format=torch.contiguous_format)


def peek(path: Path) -> tuple[dict, dict[str, tuple[int, ...]]]:
    """Metadata and shapes of a weight file."""
    if path.suffix != ".safetensors":
        return {}, {key: tuple(value.shape) for key, value in tensors(path).items()}
    with opened(path) as file:
        return file.metadata() or {}, {key: tuple(file.get_slice(key).get_shape()) for key in names(file)}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a weight file, mapped from it. InputError for what is none. Nothing in a pickle is executed."""
    if path.suffix == ".safetensors":
        with opened(path) as file:
            return {key: file.get_tensor(key) for key in names(file)}
    size = check_regular(path).st_size
    try:
        if not size:
            raise pickles.Refused("it is empty")
        with open(path, "rb") as raw:
            content = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)  # writing to it does not write to the file
        found, places = pickles.read(content)
        state = found.get("state_dict") if isinstance(found, dict) else None
        state = state if isinstance(state, dict) else found
        if not isinstance(state, dict) or not all(isinstance(each, pickles.Tensor) for each in state.values()):
            raise InputError(f"{path}: not a file of named tensors. Give a part's weights, as diffusers saves them.")
        _check_names(list(state), path)
        return pickles.mapped(content, state, places)
    except (pickles.Refused, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as plain tensors ({line(error)}): it is damaged, or a pickle that wants to run "
            "code (nothing of it was executed). Get the .safetensors version, or the file again."
        ) from error


def line(error: Exception) -> str:
    """An error's first line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(next(iter(text.splitlines()), type(error).__name__))


def _check_names(found: list, path: Path) -> None:
    if len(found) > _MOST_TENSORS:
        raise InputError(f"{path}: {len(found)} tensors, more than any checkpoint has. Get it again.")
    for name in found:
        if not isinstance(name, str) or not name.isascii() or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise InputError(f"{path}: a tensor of the name {shown(name)}, which no network has. Get it again.")
