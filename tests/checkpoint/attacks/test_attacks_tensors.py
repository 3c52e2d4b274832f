"""Tensors of no network, and files that would take all memory."""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from attacking import Calls, refused, zipped
from safetensors.torch import save_file
from support import FOLDERS, WEIGHTS

from diffharmony_models.checkpoint import Part

ROOT = Path(__file__).resolve().parents[3]


TENSORS = {  # what is done to a refiner's tensors
    "0 dimensions": lambda s: s.update({"conv_in.bias": torch.ones(())}),
    "first layer without dimensions": lambda s: s.update({"conv_in.weight": torch.ones(())}),
    "no elements": lambda s: s.update({"conv_in.bias": torch.ones(0)}),
    "float8": lambda s: s.update({"conv_in.bias": torch.ones(8).to(torch.float8_e5m2)}),
    "integers": lambda s: s.update({key: value.to(torch.int64) for key, value in s.items()}),
    "complex": lambda s: s.update({"conv_in.bias": torch.ones(8, dtype=torch.complex64)}),
    "one more": lambda s: s.update({"conv_in.biases": torch.ones(8)}),
    "a name of a megabyte": lambda s: s.update({"x" * 1_000_000: torch.ones(1)}),
    "a name of two lines": lambda s: s.update({"conv_in\nbias": torch.ones(1)}),
    "a name in other letters": lambda s: s.update({"conv_in.bіas": torch.ones(1)}),
    "a level far down": lambda s: s.update({"down_blocks.99999999.resnets.0.conv1.weight": torch.ones(1)}),
}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_tensors_of_no_network(suffix, case, parts, root):
    folder = root / FOLDERS["refiner"]
    state = {key: value.clone() for key, value in parts["refiner"].state.items()}
    TENSORS[case](state)
    (folder / WEIGHTS).unlink()
    path = (folder / WEIGHTS).with_suffix(suffix)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    refused(folder)
    refused(path)


def legacy(path: Path, count: int) -> None:
    """A file of torch before 1.6 that says it has so many numbers, and has none."""
    torch.save({"x": torch.ones(7)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x07") >= 2 and content.endswith(struct.pack("<q7f", 7, *[1] * 7))
    number = b"\x8a\x06" + count.to_bytes(6, "little")
    path.write_bytes(content[: -8 - 28].replace(b"K\x07", number) + struct.pack("<q", count))


def deflated(path: Path) -> None:
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("archive/data.pkl", "w") as member:
        for _ in range(300):
            member.write(bytes(1 << 20))


def lying_zip(path: Path) -> None:
    torch.save({"x": torch.ones(7)}, path)
    content = path.read_bytes()
    entry = content.index(b"PK\x01\x02")
    path.write_bytes(content[: entry + 20] + struct.pack("<II", 1 << 31, 1 << 31) + content[entry + 28 :])


def pointing(storage: int, offset: int, size: tuple, stride: tuple) -> bytes:
    """A pickle of one tensor in a storage "0"."""
    file = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: object) -> tuple | None:
            return ("storage", torch.FloatStorage, "0", "cpu", storage) if thing == "the storage" else None

    call = Calls(torch._utils._rebuild_tensor_v2, "the storage", offset, size, stride, False, {})
    Pickler(file, protocol=2).dump({"x": call})
    return file.getvalue()


def tensor_file(path: Path, *numbers: object) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pointing(*numbers))
        archive.writestr("archive/data/0", bytes(400))


def shared(path: Path) -> None:
    base = torch.zeros(1_000_000)
    torch.save({f"x{number}": base[:] for number in range(2000)}, path)


def header(path: Path, length: int, text: bytes) -> None:
    path.write_bytes(struct.pack("<Q", length) + text)


BOMBS = {
    "stride 0.bin": lambda p: torch.save({"x": torch.zeros(1).expand(32, 9, 2600, 2600)}, p),
    "stride 0 legacy.bin": lambda p: torch.save(
        {"x": torch.zeros(1).expand(32, 9, 2600, 2600)}, p, _use_new_zipfile_serialization=False
    ),
    "overlapping.bin": lambda p: tensor_file(p, 100, 0, (90, 10), (1, 1)),
    "beyond its storage.bin": lambda p: tensor_file(p, 100, 50, (60,), (1,)),
    "beyond the file.bin": lambda p: tensor_file(p, 10**10, 0, (10**10,), (1,)),
    "negative.bin": lambda p: tensor_file(p, 100, -50, (60,), (1,)),
    "negative stride.bin": lambda p: tensor_file(p, 100, 50, (10,), (-1,)),
    "a stride too few.bin": lambda p: tensor_file(p, 100, 0, (10, 10), (1,)),
    "no elements.bin": lambda p: tensor_file(p, 100, 0, (2**62, 2**62, 0), (1, 1, 1)),
    "true.bin": lambda p: tensor_file(p, 100, 0, (True,), (1,)),
    "2000 times the same.bin": shared,
    "bytearray.bin": lambda p: zipped(p, pickle.dumps({"x": Calls(bytearray, 10**11)}, 2)),
    "bytearray legacy.bin": lambda p: p.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps({"x": Calls(bytearray, 10**11)}, 2)
    ),
    "bytearray plain.bin": lambda p: p.write_bytes(pickle.dumps({"x": Calls(bytearray, 10**11)}, 2)),
    "bytearray opcode.bin": lambda p: zipped(p, b"\x80\x05\x96" + struct.pack("<Q", 10**11) + b"."),
    "bytes opcode.bin": lambda p: p.write_bytes(b"\x80\x05\x8e" + struct.pack("<Q", 10**11) + b"."),
    "memo.bin": lambda p: zipped(p, b"\x80\x02}r\xff\xff\xff\x7f."),
    "frame.bin": lambda p: zipped(p, b"\x80\x04\x95" + struct.pack("<Q", 10**11) + b"}."),
    "stack.bin": lambda p: zipped(p, b"\x80\x02" + b"]" * 5_000_000 + b"."),
    "storages of torch.bin": lambda p: zipped(p, pickle.dumps({"x": Calls(torch.FloatStorage, 10**10)}, 2)),
    "deflated.bin": deflated,
    "a zip that lies.bin": lying_zip,
    "legacy.bin": lambda p: legacy(p, 10**10),
    "header of an exabyte.safetensors": lambda p: header(p, 1 << 60, b"{}"),
    "header of spaces.safetensors": lambda p: header(p, 60_000_000, b"{}" + b" " * 60_000_000),
    "deep header.safetensors": lambda p: header(p, 100_000, b"[" * 100_000),
    "huge shape.safetensors": lambda p: header(
        p, 72, b'{"x":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}' + bytes(4)
    ),
    "overlapping.safetensors": lambda p: header(
        p,
        123,
        b'{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]},'
        b'"b":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}  ' + bytes(4000),
    ),
}
GATES = re.compile("plain tensors|damaged|bytes, more than any|tensors, more than any")
READER = """
import json, resource, sys, time
import torch
from diffharmony_models import checkpoint
from diffharmony_models.networks import harmony_vae  # with all of diffusers that it needs
from diffharmony_models.errors import InputError
here = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + 250_000_000,) * 2)
result = {}
for path in sys.argv[1:]:
    start = time.perf_counter()
    try:
        result[path] = ["read", str(checkpoint.read(path))]
    except BaseException as error:
        result[path] = [type(error).__name__, str(error)]
    result[path].append(time.perf_counter() - start)
print(json.dumps(result))
"""


def wide(root: Path, kind: str, part: Part) -> Path:
    """Every tensor whose shape tells a value of the config has that shape, and no elements."""
    folder, state = root / FOLDERS[kind], {}
    for key, value in part.state.items():
        tells = key.endswith(("conv1.weight", "to_k.weight", "token_embedding.weight"))
        state[key] = torch.ones(4096, *value.shape[1:-1], 0) if tells else value.clone()
    config = json.loads((folder / "config.json").read_text()) | {"block_out_channels": [4096, 4096]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / WEIGHTS)
    return folder


def hole(path: Path, side: int) -> None:
    """A huge tensor that takes no room on the disk, nor in an archive; 8 bytes from where torch would have it."""
    size = 4 * 8 * 7 * side**2
    entry = {"dtype": "F32", "shape": [8, 7, side, side], "data_offsets": [0, size]}
    text = json.dumps({"conv_in.weight": entry}).encode()
    text += b" " * (-len(text) % 64)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + size)


@pytest.mark.skipif(sys.platform != "linux", reason="needs files with holes, and to see how much memory was taken")
@pytest.mark.parametrize("side", [3000, 25_000])  # 2 GB, and more than can be mapped
def test_a_hole_in_a_file_is_not_copied(side, root):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = root / FOLDERS["refiner"]
    hole(folder / WEIGHTS, side)
    refused(folder)
    hole(root / "x.safetensors", side)
    refused(root / "x.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory, as Linux has it")
def test_what_would_take_all_memory(root, parts, tmp_path):
    for name, make in BOMBS.items():
        make(tmp_path / name)
    save_file({f"x{number}": torch.ones(1) for number in range(20_001)}, tmp_path / "many.safetensors")
    paths = [str(tmp_path / name) for name in (*BOMBS, "many.safetensors")]
    folders = tuple(str(wide(root, kind, part)) for kind, part in parts.items())
    paths += folders
    done = subprocess.run([sys.executable, "-c", READER, *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path, (kind, message, seconds) in json.loads(done.stdout).items():
        assert kind == "InputError" and path in message, (path, kind, message)
        assert seconds < 15 and len(message) < 600 and message.isprintable(), (path, seconds, message)
        assert path.endswith(folders) or GATES.search(message), message  # refused for what it is, not for its names
