"""torch's own weight files (.bin): a pickle that says which tensors lie where, and their bytes.

Not torch.load: its safe mode takes memory for whatever a pickle asks (`bytearray(10 ** 11)`, a tensor of stride 0, a
deflated member), and in older versions ran code. Here only what saving a state dict writes is understood, nothing is
called but functions of this file, and every tensor must lie within the file, each byte in one tensor at most.
"""

import io
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple, cast

import torch

_ZIP = b"PK\x03\x04"
_LARGEST_PICKLE, _MOST_OPCODES = 4 << 20, 1_000_000  # 20,000 tensors take 3 MB and half a million
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the files of torch before 1.6
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_WRITTEN = """
PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 DICT LIST
APPEND APPENDS SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE
GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
"""
_OPCODES = frozenset(_WRITTEN.split())


class Refused(Exception):
    """Not a file of plain tensors."""


class Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    length: int


class Tensor(NamedTuple):
    """What a pickle says of a tensor."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


Places = dict[str, tuple[int, int]]  # of each storage: where in the file it begins, and its bytes


def read(content: mmap.mmap) -> tuple[object, Places]:
    """The object in a file, with a `Tensor` for each tensor. Raises `Refused`."""
    try:
        return _zipped(content) if content[:4] == _ZIP else _plain(content)
    except Refused:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise Refused(str(error) or type(error).__name__) from error


def mapped(content: mmap.mmap, state: dict[str, Tensor], places: Places) -> dict[str, torch.Tensor]:
    """The tensors themselves, in the file's own bytes. Raises `Refused`."""
    if sum(math.prod(tensor.size) * tensor.storage.dtype.itemsize for tensor in state.values()) > len(content):
        raise Refused("its tensors are larger than the file")
    result = {}
    for name, tensor in state.items():
        kind, key, length = tensor.storage
        begin, there = places.get(key, (0, 0))
        if length * kind.itemsize > there:
            raise Refused(f"the data of {name} is missing")
        data = torch.frombuffer(content, dtype=kind, count=length, offset=begin)
        result[name] = data.as_strided(tensor.size, tensor.stride, tensor.offset)
    return result


def _zipped(content: mmap.mmap) -> tuple[object, Places]:
    with zipfile.ZipFile(cast(IO[bytes], content)) as archive:  # a mapped file reads as one
        listed = archive.infolist()
    members = {member.filename.partition("/")[2]: member for member in listed}
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in listed):
        raise Refused("its members are compressed")
    if len(members) != len(listed) or sum(member.file_size for member in listed) > len(content):
        raise Refused("its members are more than the file")

    def place(name: str) -> tuple[int, int]:
        member = members[name]
        head = content[member.header_offset : member.header_offset + 30]
        begin = member.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        if head[:4] != _ZIP or begin + member.file_size > len(content):
            raise Refused("its members do not lie in the file")
        return begin, member.file_size

    def text(name: str) -> bytes:
        begin, size = place(name)
        return content[begin : begin + size]

    if "byteorder" in members and text("byteorder") != b"little":
        raise Refused("it was made on a machine of another byte order")
    found, _, _ = _unpickle(text("data.pkl"))
    return found, {name[5:]: place(name) for name in members if name.startswith("data/")}


def _plain(content: mmap.mmap) -> tuple[object, Places]:
    """As torch wrote them before 1.6: five pickles, the fourth the object, then each storage behind its length."""
    found: list[Any] = []
    storages: dict[str, Storage] = {}
    position = 0
    for _ in range(5):
        one, named, length = _unpickle(content[position : position + _LARGEST_PICKLE + 1])
        if not found and one != _MAGIC:
            raise Refused("not a file of torch's")
        found.append(one)
        storages |= named
        position += length
    _, protocol, system, state, keys = found
    if protocol != _PROTOCOL or system["little_endian"] is not True or set(keys) != set(storages):
        raise Refused("it was made on a machine of another kind")
    places = {}
    for key in keys:
        (count,) = struct.unpack_from("<q", content, position)
        size = count * storages[key].dtype.itemsize
        if count != storages[key].length or position + 8 + size > len(content):
            raise Refused("its data does not lie in the file")
        places[key] = (position + 8, size)
        position += 8 + size
    return state, places


def _unpickle(data: bytes) -> tuple[object, dict[str, Storage], int]:
    """The object, the storages that it names, and the pickle's length."""
    end = 0
    for number, (opcode, argument, at) in enumerate(pickletools.genops(data)):
        position = cast(int, at)  # None only for what is no file
        put = opcode.name in ("BINPUT", "LONG_BINPUT") and cast(int, argument) > len(data)
        if opcode.name not in _OPCODES or put or position > _LARGEST_PICKLE or number > _MOST_OPCODES:
            raise Refused(f"no state dict has a {opcode.name} there")
        end = position + 1
    unpickler = _Unpickler(io.BytesIO(data))
    return unpickler.load(), unpickler.storages, end


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return _State
        if module == "torch._utils" and name in _CALLS:
            return _CALLS[name]
        raise Refused(f"it asks for {module}.{name}")

    def persistent_load(self, pid: tuple) -> Storage:
        name, kind, key, _, count, *view = pid
        plain = name == "storage" and isinstance(kind, torch.dtype) and type(key) is str and type(count) is int
        if not plain or count < 0 or any(view) or self.storages.get(key, (kind, key, count)) != (kind, key, count):
            raise Refused("it names data that no state dict has")
        return self.storages.setdefault(key, Storage(kind, key, count))


class _State(dict):
    """In place of OrderedDict; the attributes that a pickle would give it are left out."""

    def __setstate__(self, state: object) -> None:
        pass


class _Call:
    """A function that a pickle can call and not change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, *arguments: object) -> object:
        return self.function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise Refused("it would change a function")


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    """For torch's function of these arguments. Each element of the storage is at most once in the tensor."""
    numbers = (offset, *size, *stride)
    plain = type(storage) is Storage and all(type(number) is int and number >= 0 for number in numbers)
    if not plain or 0 in size or len(size) != len(stride) or len(size) > 8:
        raise Refused("a tensor of no shape")
    reach = 1
    for step, length in sorted(zip(stride, size)):
        if length > 1 and step < reach:
            raise Refused("a tensor larger than its data")
        reach += (length - 1) * step
    if offset + reach > storage.length:
        raise Refused("a tensor larger than its data")
    return Tensor(storage, offset, tuple(size), tuple(stride))


_CALLS = {"_rebuild_tensor_v2": _Call(_tensor), "_rebuild_parameter": _Call(lambda data, *_: data)}
