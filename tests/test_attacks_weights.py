"""Weight files and folders made to harm: each is refused in words that name it, quickly and without taking memory."""

import importlib
import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import PARTS, Checkpoint, Part, configs, files
from diffharmony_models.errors import InputError
from diffharmony_models.networks.harmony_vae import HarmonyVAE
from diffharmony_models.networks.refiner import Refiner

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "diffusion_pytorch_model.safetensors"
FOLDERS = {"unet": "base/unet", "vae": "base/vae", "text_encoder": "base/text_encoder"}
FOLDERS |= {"refiner": "refinement", "harmony_vae": "condition_vae"}
LONG = "9" * 400


def tiny_parts() -> dict[str, Part]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    widths = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    unet = UNet2DConditionModel(
        in_channels=9, cross_attention_dim=8, attention_head_dim=2, down_block_types=down, up_block_types=up, **widths
    )
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(latent_channels=4, **widths, **blocks)
    config = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    encoder = CLIPTextModel(config)
    text = Part(json.loads(config.to_json_string()) | {"architectures": ["CLIPTextModel"]}, encoder.state_dict())
    modules = {"unet": unet, "vae": vae, "refiner": Refiner(**widths), "harmony_vae": HarmonyVAE.from_vae(vae)}
    return {kind: checkpoints.part_from(module) for kind, module in modules.items()} | {"text_encoder": text}


@pytest.fixture(scope="module")
def parts() -> dict[str, Part]:
    return tiny_parts()


@pytest.fixture(scope="module")
def _published(parts, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("attacked") / "weights"
    for kind, folder in FOLDERS.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "config.json").write_text(json.dumps(parts[kind].config))
        save_file({key: value.clone() for key, value in parts[kind].state.items()}, root / folder / WEIGHTS)
    (root / "base" / "model_index.json").write_text("{}")
    return root


@pytest.fixture
def root(_published, tmp_path) -> Path:
    return Path(shutil.copytree(_published, tmp_path / "weights"))


def refused(path: Path, *names: str) -> str:
    """Reading must end in an InputError of a line that names the file, within seconds. Returns what it says."""
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        checkpoints.read(path)
    message = str(error.value)
    assert time.perf_counter() - start < 15
    assert message.isprintable() and len(message) < 1000, message[:2000]
    assert all(name in message for name in (str(path), *names)), message
    return message


def test_the_folder_is_read_as_long_as_nothing_is_done_to_it(root, parts):
    whole = checkpoints.read(root)
    assert all(getattr(whole, kind).state.keys() == parts[kind].state.keys() for kind in set(PARTS) & set(parts))
    assert whole.null_text.shape == (77, 8)


# Configs: what is added to one, and a word of the message.

SAID = {
    "unet": [
        {"transformer_layers_per_block": 1_000_000_000},
        {"transformer_layers_per_block": [1_000_000_000, 1]},
        {"transformer_layers_per_block": [[1, 1], [1, 1]]},
        {"layers_per_block": [1_000_000_000, 1]},
        {"layers_per_block": 10**30},
        {"layers_per_block": [1]},
        {"layers_per_block": True},
        {"layers_per_block": 1.5},
        {"layers_per_block": None},
        {"layers_per_block": 0},
        {"block_out_channels": [8] * 1000},
        {"block_out_channels": [8, -8]},
        {"block_out_channels": [8, "8"]},
        {"block_out_channels": []},
        {"block_out_channels": 8},
        {"block_out_channels": "88"},
        {"block_out_channels": [8, [8]]},
        {"norm_num_groups": -8},
        {"norm_num_groups": 0},
        {"norm_num_groups": 3},
        {"norm_num_groups": None},
        {"norm_num_groups": "x" * 1_000_000},
        {"norm_num_groups": "\n\x1b[2J"},
        {"attention_head_dim": 0},
        {"attention_head_dim": 3},
        {"attention_head_dim": [2]},
        {"attention_head_dim": {"a": 1}},
        {"num_attention_heads": 0},
        {"time_embedding_dim": -5},
        {"time_embedding_dim": 10**9},
        {"time_embedding_type": "fourier"},
        {"cross_attention_dim": [8, 8]},
        {"cross_attention_dim": -8},
        {"down_block_types": 5},
        {"down_block_types": ["DownBlock2D"]},
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
        {"down_block_types": [["DownBlock2D"], "DownBlock2D"]},
        {"mid_block_type": "MidBlock"},
        {"encoder_hid_dim": 10**9},
        {"encoder_hid_dim_type": "text_image_proj"},
        {"addition_embed_type": "text"},
        {"class_embed_type": "projection"},
        {"num_class_embeds": 10**9},
        {"conv_in_kernel": 10**6},
        {"act_fn": ["silu"]},
        {"norm_eps": float("nan")},
        {"norm_eps": "1e-5"},
        {"sample_size": 10**9},
        {"sample_size": "64"},
        {"in_channels": "9"},
        {"out_channels": 10**9},
        {"use_linear_projection": "yes"},
        {"_class_name": "UNet2DConditionModel", "upcast_attention": 5},
    ],
    "vae": [
        {"scaling_factor": None},
        {"scaling_factor": 0},
        {"scaling_factor": -1},
        {"scaling_factor": float("inf")},
        {"scaling_factor": float("nan")},
        {"scaling_factor": "0.18"},
        {"scaling_factor": True},
        {"scaling_factor": 10**400},
        {"shift_factor": 1.5},
        {"latents_mean": [0.0]},
        {"latent_channels": 10**9},
        {"layers_per_block": 1_000_000_000},
        {"layers_per_block": [1, 1]},
        {"mid_block_add_attention": False},
        {"use_quant_conv": False},
        {"force_upcast": "no"},
        {"sample_size": None},
        {"up_block_types": ["UpDecoderBlock2D"] * 3},
    ],
    "refiner": [
        {"attention_head_dim": 0},
        {"attention_head_dim": 3},
        {"attention_head_dim": -8},
        {"attention_head_dim": "8"},
        {"downsample_padding": 10**9},
        {"norm_eps": None},
        {"norm_eps": -1.0},
        {"layers_per_block": -1},
        {"block_out_channels": [10**9, 10**9]},
        {"up_block_types": None},
        {"input_residual": False},
    ],
    "harmony_vae": [
        {"scaling_factor": None},
        {"additional_in_channels": -1},
        {"norm_num_groups": "4"},
        {"latents_std": 5},
        {"mid_block_add_attention": None},
    ],
    "text_encoder": [
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"num_attention_heads": -2},
        {"hidden_size": "8"},
        {"hidden_act": "evil/kernel"},
        {"hidden_act": ["gelu"]},
        {"layer_norm_eps": 0},
        {"max_position_embeddings": 10**9},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 8},
        {"intermediate_size": None},
    ],
}


@pytest.mark.parametrize("kind", SAID)
def test_a_config_that_says_what_it_must_not(kind, root):
    config = root / FOLDERS[kind] / "config.json"
    content = json.loads(config.read_text())
    for change in SAID[kind]:
        config.write_text(json.dumps(content | change))
        try:
            message = refused(config.parent)
        except BaseException:
            print(f"{kind} with {str(change)[:200]}")
            raise
        assert any(key in message for key in change) or "tensors do not fit" in message, (change, message)


@pytest.mark.parametrize("kind", [kind for kind in SAID if kind != "text_encoder"])
def test_the_same_in_a_one_file_checkpoint_and_in_a_part_made_by_hand(kind, root, parts):
    """The same gate; a few of each, for each is another 100 reads."""
    path = root / "one.safetensors"
    part = parts[kind]
    for change in SAID[kind][::5]:
        config = part.config | change
        state = {f"{kind}.{key}": value.clone() for key, value in part.state.items()}
        save_file(state, path, {"format": "diffharmony", kind: json.dumps(config)})
        refused(path)
        with pytest.raises(InputError):
            getattr(checkpoints, f"build_{kind}")(Part(config, part.state))
        with pytest.raises(InputError):
            checkpoints.write(Checkpoint("x", **{kind: Part(config, part.state)}), root / "out.safetensors")


def test_unknown_keys_do_not_get_through(root):
    folder = root / FOLDERS["text_encoder"]
    evil = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "_experts_implementation": "evil/kernel",
        "auto_map": {"AutoModel": "evil--code.Model"},
        "quantization_config": {"quant_method": "evil"},
        "torch_dtype": "evil",
        "dtype": 5,
        "id2label": 5,
        "output_hidden_states": True,
        "return_dict": False,
        "_name_or_path": "evil/repository",
    }
    expected = checkpoints.read(root).null_text
    for path, added in ((folder, evil), (root / FOLDERS["unet"], evil | {"dropout": 1e9, "_use_default_values": 5})):
        config = path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | added))
    whole = checkpoints.read(root)
    assert torch.equal(whole.null_text, expected)
    assert not set(evil) & set(whole.unet.config) and whole.unet.config["dropout"] == 0
    assert not set(evil) & set(configs.clean("text_encoder", json.loads((folder / "config.json").read_text())))


JSON = {  # what stands in place of a config.json
    "deep lists": b"[" * 100_000,
    "a deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "architectures no list": b'{"architectures": 5}',
    "architectures of lists": b'{"architectures": [[5], {}], "_class_name": [1]}',
    "a class of another kind": b'{"_class_name": ["UNet2DConditionModel"], "model_type": ["clip_text_model"]}',
    "a number of 5000 digits": b'{"in_channels": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "a lone surrogate": b'{"_class_name": "\\ud800", "x": 1}',
    "nothing": b"",
    "null": b"null",
    "NUL": b"\0" * 100,
}


@pytest.mark.parametrize("case", JSON)
@pytest.mark.parametrize("kind", ["unet", "text_encoder"])
def test_a_config_json_that_is_none(kind, case, root):
    folder = root / FOLDERS[kind]
    (folder / "config.json").write_bytes(JSON[case])
    refused(folder)
    with pytest.raises(InputError):
        checkpoints.read(folder / WEIGHTS)


def test_files_that_are_too_large_to_be_what_they_are_called(root):
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        path = root / "base" / name
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.exists() else b"{}"
        with open(path, "wb") as file:
            file.truncate(20_000_000_000)  # a hole: takes no room
        assert str(path) in refused(root)
        path.write_bytes(before)
    checkpoints.read(root)


MAPS = [
    5,
    [],
    {},
    {"a": 5},
    {"a": ["b"]},
    {"a": None},
    {"a": {"b": 1}},
    {"a": "../../etc/passwd"},
    {"a": "/etc/passwd"},
]
MAPS += [
    {"a": "gone.safetensors"},
    {"a": "x\0y"},
    {"a": "\ud800"},
    {"a": ""},
    {"a": "."},
    {"a": ".."},
    {"a": "x" * 5000},
]
MAPS += [{"a": "unet\\..\\x.safetensors"}, {"a": "config.json"}]


def test_an_index_of_shards_that_leads_elsewhere(root):
    folder = root / FOLDERS["refiner"]
    (folder / WEIGHTS).rename(folder / "part-00001-of-00001.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-00001-of-00001.safetensors"}}))
    assert checkpoints.read(folder).refiner
    for content in MAPS:
        index.write_text(json.dumps({"weight_map": content}))
        refused(folder)
    for content in (b"[]", b"5", b"{}", b"{", b"[" * 100_000):
        index.write_bytes(content)
        refused(folder)


SCHEDULERS = [
    '{"prediction_type": 5}',
    '{"prediction_type": ["epsilon"]}',
    '{"prediction_type": "%s"}' % ("x" * 100_000),
]
SCHEDULERS += ['{"prediction_type": null}', "[]", "[" * 100_000]


def test_a_scheduler_that_says_what_it_must_not(root):
    (root / "base" / "scheduler").mkdir()
    for content in SCHEDULERS:
        (root / "base" / "scheduler" / "scheduler_config.json").write_text(content)
        refused(root / "base", "scheduler_config.json")


METADATA = [
    {"resolution": value}
    for value in (
        "20000",
        str(10**9),
        LONG,
        "9" * 5000,
        "-64",
        "63",
        "64.0",
        "1e3",
        "nan",
        "٣٢١",
        "²²²",
        "",
        " 64",
        "NaN",
    )
] + [{"prediction_type": "x" * 100_000}, {"prediction_type": "\n"}]


def one_file(path: Path, parts: dict[str, Part], **more: torch.Tensor) -> tuple[dict, dict]:
    tensors = {f"refiner.{key}": value.clone() for key, value in parts["refiner"].state.items()} | more
    metadata = {"format": "diffharmony", "refiner": json.dumps(parts["refiner"].config)}
    save_file(tensors, path, metadata)
    return tensors, metadata


def test_metadata_that_says_what_it_must_not(parts, tmp_path):
    path = tmp_path / "one.safetensors"
    tensors, metadata = one_file(path, parts)
    assert checkpoints.read(path).refiner
    for change in METADATA:
        save_file(tensors, path, metadata | change)
        refused(path)
    for config in ("5", "[]", "null", "{", "[" * 100_000, '"x"', "NaN", '{"in_channels": ' + "9" * 5000 + "}"):
        save_file(tensors, path, metadata | {"refiner": config})
        refused(path)
    with pytest.raises(InputError):
        checkpoints.write(Checkpoint("x", null_text=torch.ones(1, 8), resolution=10**400), tmp_path / "out.safetensors")


NULL_TEXTS = {
    "0 dimensions": torch.ones(()),
    "no tokens": torch.ones(0, 8),
    "no width": torch.ones(8, 0),
    "many tokens": torch.ones(100_000, 1),
    "integers": torch.ones(77, 8, dtype=torch.int8),
    "booleans": torch.ones(77, 8, dtype=torch.bool),
    "float8": torch.ones(77, 8).to(torch.float8_e4m3fn),
    "complex": torch.ones(77, 8, dtype=torch.complex64),
    "three dimensions": torch.ones(1, 77, 8),
}


@pytest.mark.parametrize("case", NULL_TEXTS)
def test_a_null_text_of_no_use(case, parts, tmp_path):
    one_file(tmp_path / "one.safetensors", parts, null_text=NULL_TEXTS[case])
    refused(tmp_path / "one.safetensors")


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


# Files that would take all memory. They are read in a process that may take hardly any.


class Calls:
    def __init__(self, function: object, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def legacy(path: Path, count: int) -> None:
    """A file of torch before 1.6 that says it has so many numbers, and has none."""
    torch.save({"x": torch.ones(7)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x07") >= 2 and content.endswith(struct.pack("<q7f", 7, *[1] * 7))
    number = b"\x8a\x06" + count.to_bytes(6, "little")
    path.write_bytes(content[: -8 - 28].replace(b"K\x07", number) + struct.pack("<q", count))


def zipped(path: Path, data: bytes, **settings: int) -> None:
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("archive/data.pkl", data)


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
READER = """
import json, resource, sys, time
import torch
from diffharmony_models import checkpoint
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
    paths += [str(wide(root, kind, part)) for kind, part in parts.items()]
    done = subprocess.run([sys.executable, "-c", READER, *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path, (kind, message, seconds) in json.loads(done.stdout).items():
        assert kind == "InputError" and path in message, (path, kind, message)
        assert seconds < 15 and len(message) < 600 and message.isprintable(), (path, seconds, message)


EXECUTED = os.path.join(tempfile.gettempdir(), "executed")
PICKLES = {
    "system": Calls(os.mkdir, EXECUTED),
    "getattr": Calls(getattr, "x", "upper"),
    "torch's own": Calls(torch.load, "x"),
    "a storage from a file": Calls(torch.FloatStorage._new_shared, 5),
    "sparse": torch.ones(3).to_sparse(),
    "on meta": torch.ones(3, device="meta"),
    "a module": torch.nn.Linear(2, 2),
    "a set": {1, 2},
    "bytes": b"x",
    "a list": [torch.ones(3)],
    "a number": 5,
}


@pytest.mark.parametrize("case", PICKLES)
@pytest.mark.parametrize("zip_file", [True, False])
def test_a_pickle_of_more_than_plain_tensors(case, zip_file, tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"conv_in.weight": PICKLES[case]}, path, _use_new_zipfile_serialization=zip_file)
    refused(path)
    assert not os.path.exists(EXECUTED)


def test_a_pickle_that_changes_what_it_calls(tmp_path):
    """BUILD gives attributes to whatever lies on the stack: functions of ours must not take them."""
    state = b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86bs."
    zipped(tmp_path / "x.bin", state)
    refused(tmp_path / "x.bin")
    shadow = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    zipped(tmp_path / "x.bin", shadow)
    refused(tmp_path / "x.bin")
    torch.save({"x": torch.ones(3)}, tmp_path / "x.bin")
    assert "no part known here (x)" in refused(tmp_path / "x.bin")  # the reader works as before


@pytest.mark.parametrize("zip_file", [True, False])
def test_pickles_of_every_dtype_and_form(zip_file, tmp_path):
    """What torch itself reads, bit for bit; parameters, transposed tensors, shared storages and views among them."""

    base = torch.randn(10, 6)
    state = {str(kind): torch.randn(3, 5).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float64)}
    state |= {"ids": torch.arange(5), "bytes": torch.arange(5, dtype=torch.uint8), "flag": torch.tensor(True)}
    state |= {"parameter": torch.nn.Parameter(base.clone()), "transposed": base.t(), "view": base[2:4, 1:3]}
    state |= torch.nn.BatchNorm2d(4).state_dict()
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Linear(3, 3))
    for content in (state, module.state_dict(), {"state_dict": module.state_dict(), "epoch": 5, "rate": 0.5}):
        torch.save(content, tmp_path / "x.bin", _use_new_zipfile_serialization=zip_file)
        expected = torch.load(tmp_path / "x.bin", weights_only=True)
        expected = expected.get("state_dict", expected)
        found = files.tensors(tmp_path / "x.bin")
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert value.dtype == expected[key].dtype and torch.equal(value, expected[key]), key


def test_every_way_to_cut_a_pickle_short_names_it(parts, tmp_path):
    path = tmp_path / "cut.bin"
    for zip_file in (True, False):
        torch.save(dict(parts["refiner"].state), path, _use_new_zipfile_serialization=zip_file)
        content = path.read_bytes()
        for share in (
            0,
            1,
            3,
            4,
            30,
            100,
            1000,
            len(content) // 3,
            len(content) // 2,
            len(content) - 1000,
            len(content) - 1,
        ):
            path.write_bytes(content[:share])
            refused(path)


def test_every_byte_changed(parts, tmp_path):
    """Whatever a flipped byte does, it ends in words or in tensors."""
    path = tmp_path / "flipped.bin"
    torch.save({"conv_in.bias": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        refused(path)


# Things in a folder that are no files.


def special(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(folder)  # a socket's path is short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "dangling": "gone"}[kind])
    return path


SPECIAL = ["pipe", "socket", "device", "loop", "dangling", "folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and links, as Unix has them")
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file(kind, tmp_path):
    refused(special(tmp_path, kind))


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and links, as Unix has them")
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "name", ["base/unet/config.json", f"base/unet/{WEIGHTS}", "base/scheduler/scheduler_config.json"]
)
def test_what_is_no_file_in_a_folder(kind, name, root):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).unlink(missing_ok=True)
    special(root, kind).rename(root / name)
    if kind == "dangling" and WEIGHTS in name:
        assert "without its weights" in refused(root / "base" / "unet")
    else:
        refused(root / "base")


@pytest.mark.skipif(sys.platform == "win32", reason="needs links, as Unix has them")
def test_links_in_a_circle(root):
    for number in range(60):
        (root / f"again {number}").symlink_to(".")
        (root / "base" / f"up {number}").symlink_to("..")
    whole = checkpoints.read(root)
    assert whole.unet and whole.refiner
    for number in range(40):
        (root / f"side {number}").mkdir()
        for other in range(40):
            (root / f"side {number}" / f"to {other}").symlink_to(f"../side {other}")
    assert "too many" in refused(root)


def test_paths_that_lead_nowhere(tmp_path):
    for path in ("x" * 5000, "a\0b", tmp_path / "x" / ("y" * 300), tmp_path / "\udcff"):
        with pytest.raises(InputError):
            checkpoints.read(path)


# The list of checkpoints in ComfyUI.


def node_module(name: str) -> types.ModuleType:
    """A module of nodes/ that needs no ComfyUI, without the package around it, which does."""
    for package, folder in (("without_host", ROOT), ("without_host.nodes", ROOT / "nodes")):
        sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(folder)]
    return importlib.import_module(f"without_host.nodes.{name}")


def tree(root: Path, at: Path) -> list[str]:
    """Good checkpoints in a folder of models; their names in the list."""
    shutil.copytree(root, at / "good" / "zip")
    shutil.copy(root / "refinement" / WEIGHTS, at / "z last.safetensors")
    return ["good/zip/base", "z last.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and links, as Unix has them")
def test_one_bad_entry_never_takes_the_list_away(root, tmp_path, caplog):
    folders = node_module("folders")
    models = tmp_path / "models"
    models.mkdir()
    good = tree(root, models)
    for number, content in enumerate(JSON.values()):
        (models / f"bad {number}" / "inner").mkdir(parents=True)
        (models / f"bad {number}" / "config.json").write_bytes(content)
        (models / f"bad {number}" / "inner" / "config.json").write_bytes(content)
    for kind in SPECIAL:
        special(models, kind)
        (models / f"with {kind}").mkdir()
        special(models / f"with {kind}", kind).rename(models / f"with {kind}" / "config.json")
    for number in range(50):
        (models / f"again {number}").symlink_to(".")
        (models / "good" / f"up {number}").symlink_to("..")
    (models / os.fsdecode(b"no text \xff.safetensors")).write_bytes(b"")
    start = time.perf_counter()
    assert folders.names([str(models), str(tmp_path / "gone")]) == [folders.BUNDLED, *good]
    assert time.perf_counter() - start < 10
    for name in good:
        assert folders.resolve(name, [str(models)]) == models / name
        assert folders.fingerprint(models / name)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links, as Unix has them")
def test_the_list_is_made_in_bounded_time(root, tmp_path, monkeypatch, caplog):
    folders = node_module("folders")
    good = tree(root, tmp_path / "models")
    crowded = tmp_path / "models" / "crowded"
    crowded.mkdir()
    for number in range(60):
        (crowded / f"side {number}").mkdir()
        for other in range(60):
            (crowded / f"side {number}" / f"to {other}").symlink_to(f"../side {other}")
    start = time.perf_counter()
    assert folders.names([str(tmp_path / "models")]) == [folders.BUNDLED, *good]
    assert time.perf_counter() - start < 10 and not caplog.text
    monkeypatch.setattr(folders, "_MOST_ENTRIES", 200)
    assert folders.names([str(tmp_path / "models")]) == [folders.BUNDLED, good[1]]
    assert "too much" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="needs links, as Unix has them")
def test_a_link_to_a_checkpoint_elsewhere_is_in_the_list(root, tmp_path):
    folders = node_module("folders")
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "linked").symlink_to(root / "base")
    (tmp_path / "models" / "deep" / "zip").symlink_to(root)
    (tmp_path / "models" / "file.safetensors").symlink_to(root / FOLDERS["refiner"] / WEIGHTS)
    assert folders.names([str(tmp_path / "models")])[1:] == ["deep/zip/base", "file.safetensors", "linked"]


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs root, to be somebody else")
def test_folders_that_may_not_be_read(root):
    folders = node_module("folders")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        os.chmod(models, 0o755)
        good = tree(root, models)
        for path in models.rglob("*"):
            os.chmod(path, 0o755)
        shutil.copytree(root, models / "private")
        os.chmod(models / "private", 0)
        shutil.copytree(root, models / "half")
        os.chmod(models / "half", 0o755)
        os.chmod(models / "half" / "base", 0)
        os.chmod(models / "good" / "zip" / "base" / "vae" / WEIGHTS, 0)
        os.seteuid(65534)
        try:
            assert {folders.BUNDLED, *good} <= set(folders.names([str(models)]))
            refused(models / "private")
            refused(models / "half")
            refused(models / "good" / "zip", WEIGHTS, "ermission")
        finally:
            os.seteuid(0)


def test_configs_in_the_hosts_words(parts):
    """The same gate before ComfyUI's own networks: nothing but an InputError."""
    native = node_module("host.configs")
    wide = {"block_out_channels": [32, 64], "norm_num_groups": 8}
    unet = native.unet_config(parts["unet"].config | wide)
    assert unet["model_channels"] == 32 and unet["channel_mult"] == [1, 2] and unet["num_heads"] == 2
    with pytest.raises(ValueError, match="levels"):
        native.vae_config(parts["vae"].config | wide)
    for kind, translate in (("unet", native.unet_config), ("vae", native.vae_config)):
        for change in SAID[kind]:
            with pytest.raises(ValueError):
                translate(parts[kind].config | wide | change)
