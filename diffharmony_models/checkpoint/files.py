"""Files that somebody else made: each takes no more memory than it has bytes, and is named in every error."""

import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from . import pickles
from .rules import shown

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


class WeightFile:
    """A file of named tensors, opened once. They are mapped from it, not copied; nothing in a pickle is executed.

    metadata: of a .safetensors file, else empty. names: of the tensors. InputError for what is no such file.
    """

    def __init__(self, path: Path):
        size = check_regular(path).st_size
        self.metadata: dict[str, str] = {}
        with _telling(path):
            if path.suffix == ".safetensors":
                file = _opened(path, size)
                self.metadata, self.names = file.metadata() or {}, list(file.keys())
                self._get: Callable[[str], torch.Tensor] = file.get_tensor
            else:
                state = _unpickled(path, size)
                self.names, self._get = list(state), state.__getitem__
        self.path = path
        _check_names(self.names, path)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor."""
        with _telling(self.path):
            return self._get(name)

    def state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """All tensors whose names begin so, by the rest of the name."""
        return {name[len(prefix) :]: self.tensor(name) for name in self.names if name.startswith(prefix)}


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, pickles.Refused, OSError) as error:
        if path.suffix == ".safetensors":
            raise InputError(f"{path}: damaged or not a safetensors file ({line(error)}). Get it again.") from error
        raise InputError(
            f"{path}: cannot be read as plain tensors ({line(error)}): it is damaged, or a pickle that wants to run "
            "code (nothing of it was executed). Get the .safetensors version, or the file again."
        ) from error


def _opened(path: Path, size: int) -> safe_open:
    with open(path, "rb") as raw:
        header = int.from_bytes(raw.read(8), "little")
    if _LARGEST_HEADER < header <= size:
        raise InputError(f"{path}: a header of {header} bytes, more than any checkpoint's. Get it again.")
    try:
        return safe_open(path, "pt")
    except RuntimeError as error:  # torch could not map it
        raise InputError(f"{path}: {size} bytes, too large for this machine. Get it again.") from error


def _unpickled(path: Path, size: int) -> dict[str, torch.Tensor]:
    if not size:
        raise pickles.Refused("it is empty")
    with open(path, "rb") as raw:
        content = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)  # writing to it does not write to the file
    found, places = pickles.read(content)
    state = found.get("state_dict") if isinstance(found, dict) else None
    state = state if isinstance(state, dict) else found
    if not isinstance(state, dict) or not all(isinstance(each, pickles.Tensor) for each in state.values()):
        raise InputError(f"{path}: not a file of named tensors. Give a part's weights, as diffusers saves them.")
    return pickles.mapped(content, state, places)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy where it starts elsewhere than torch's own: kernels sum in another order there, and a
    picture would depend on the length of a file's header."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone(memory_format=torch.contiguous_format)


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
