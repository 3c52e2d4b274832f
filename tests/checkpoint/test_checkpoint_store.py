"""One-file checkpoints: every part survives being stored, and a folder becomes one file."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparing import BUILD, PUBLISHED, names, refused, run, same
from safetensors.torch import load_file, save_file
from support import WEIGHTS, lay, tiny_networks

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import PARTS, Checkpoint
from diffharmony_models.errors import InputError

WIDTHS = {"golden": ((32, 64, 64, 64), (32, 32, 64, 64)), "others": ((32, 96), (32, 64))}


@pytest.mark.parametrize("size", WIDTHS)
def test_parts_survive(size, tmp_path):
    modules = {kind: module.eval() for kind, module in tiny_networks(*WIDTHS[size]).items()}
    whole = Checkpoint("whole", **{kind: checkpoints.part_from(module) for kind, module in modules.items()})
    checkpoints.write(whole, tmp_path / "whole.safetensors")
    loaded = checkpoints.read(tmp_path / "whole.safetensors")
    for kind, module in modules.items():
        again = BUILD[kind](getattr(loaded, kind))
        assert not again.training
        assert same(checkpoints.part_from(again), getattr(whole, kind))
        assert torch.equal(run(kind, again), run(kind, module)), kind


def header_of(path: Path) -> tuple[dict, int]:
    """A safetensors file's header, and where its data begins."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, 8 + length


def test_data_lies_where_it_need_not_be_copied(tiny, tmp_path):
    for dtype in ("fp32", "fp16", None):
        checkpoints.write(tiny, tmp_path / "tiny.safetensors", dtype)
        header, begin = header_of(tmp_path / "tiny.safetensors")
        assert begin % 64 == 0
        sizes = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
        copied = sum(sizes[name] for name, entry in header.items() if entry["data_offsets"][0] % 64)
        assert copied < 0.01 * sum(sizes.values())


@pytest.mark.parametrize("more", [0, 8, 24, 56])
def test_a_result_does_not_depend_on_a_headers_length(more, tiny, tmp_path):
    """Other programs begin the data anywhere, and kernels sum otherwise there: by 1e-6 on processors with AVX-512."""
    state = {f"unet.{key}": value for key, value in tiny.unet.state.items()}
    path = tmp_path / "any.safetensors"
    metadata = {"format": "diffharmony", "unet": json.dumps(tiny.unet.config), "more": ""}
    save_file(state, path, metadata)
    metadata["more"] = "x" * (-header_of(path)[1] % 64 + more)
    save_file(state, path, metadata)
    assert header_of(path)[1] % 64 == more
    loaded = checkpoints.read(path).unet
    assert all(value.data_ptr() % 64 == 0 for value in loaded.state.values())
    assert torch.equal(run("unet", BUILD["unet"](loaded)), run("unet", BUILD["unet"](tiny.unet)))
    for name in (WEIGHTS, "diffusion_pytorch_model.bin"):
        loaded = checkpoints.read(lay(tmp_path / name, tiny.unet, name)).unet
        assert all(value.data_ptr() % 64 == 0 for value in loaded.state.values())


def test_one_file_keeps_everything(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    checkpoints.write(tiny, path)
    loaded = checkpoints.read(path)
    assert loaded.name == "tiny" and loaded.prediction_type == "v_prediction" and loaded.resolution == 256
    assert torch.equal(loaded.null_text, tiny.null_text)
    assert all(getattr(loaded, kind).config == json.loads(json.dumps(getattr(tiny, kind).config)) for kind in PARTS)
    plain = load_file(path)  # safetensors' own reader agrees
    assert set(plain) == {f"{kind}.{key}" for kind in PARTS for key in getattr(tiny, kind).state} | {"null_text"}
    assert torch.equal(plain["unet.conv_in.weight"], tiny.unet.state["conv_in.weight"])
    assert os.listdir(tmp_path) == ["tiny.safetensors"]


def test_the_number_of_steps_is_kept(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    checkpoints.write(replace(tiny, steps=2), path)
    assert checkpoints.read(path).steps == checkpoints.read(path, parts=("unet",)).steps == 2


@pytest.mark.parametrize("steps", ["0", "1001", "-1", "2.5", "", "x", "9" * 400, "²"])
def test_steps_that_are_no_number(steps, tiny, tmp_path):
    path = tmp_path / "steps.safetensors"
    state = {f"vae.{key}": value for key, value in tiny.vae.state.items()}
    save_file(state, path, {"format": "diffharmony", "vae": json.dumps(tiny.vae.config), "steps": steps})
    with pytest.raises(InputError, match="1 to 1000"):
        checkpoints.read(path)


def test_unknown_metadata_is_tolerated(tiny, tmp_path):
    path = tmp_path / "future.safetensors"
    state = {f"vae.{key}": value for key, value in tiny.vae.state.items()}
    metadata = {"format": "diffharmony", "vae": json.dumps(tiny.vae.config), "author": "somebody", "later": "{"}
    save_file(state, path, metadata)
    loaded = checkpoints.read(path)
    assert names(loaded) == {"vae"} and loaded.prediction_type == "epsilon"
    assert (loaded.resolution, loaded.steps) == (1024, 5)  # the published ones


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", torch.float16])
def test_dtype(dtype, tiny, tmp_path):
    checkpoints.write(tiny, tmp_path / "out.safetensors", dtype)
    loaded = checkpoints.read(tmp_path / "out.safetensors")
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}.get(dtype, dtype)
    for kind in PARTS:
        key, source = next(iter(getattr(tiny, kind).state.items()))
        assert all(value.dtype == expected for value in getattr(loaded, kind).state.values())
        assert torch.equal(getattr(loaded, kind).state[key], source.to(expected))
        assert source.dtype == torch.float32
    assert next(checkpoints.build_refiner(loaded.refiner).parameters()).dtype == expected
    assert loaded.null_text.dtype == torch.float32 and torch.equal(loaded.null_text, tiny.null_text)


def test_convert_and_describe(root, tiny, tmp_path):
    made = checkpoints.convert(root, tmp_path / "one.safetensors", "fp16")
    loaded = checkpoints.read(tmp_path / "one.safetensors")
    assert names(loaded) == names(made) == {*PUBLISHED, "null_text"}
    assert torch.equal(loaded.null_text, checkpoints.read(root).null_text)
    again = checkpoints.convert(tmp_path / "one.safetensors", tmp_path / "again.safetensors")
    assert same(again.unet, loaded.unet)
    text = checkpoints.describe(made)
    assert len(text.splitlines()) == 7 and "float16" in text and "32/96" in text and "77 x 16" in text
    count = sum(value.numel() for value in tiny.unet.state.values()) / 1e6
    assert f"{count:.1f} M" in text
    assert "none" in checkpoints.describe(Checkpoint("empty"))


def over(root: Path, target: Path, source: Path) -> None:
    """Converting must be refused, and leave every file as it was."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    refused(lambda: checkpoints.convert(source, target), str(target), "over its source")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_convert_never_writes_over_what_it_reads(root):
    unet, refiner = root / "base" / "unet" / WEIGHTS, root / "refinement" / WEIGHTS
    for target in (unet, root / "base" / "unet" / ".." / "vae" / WEIGHTS, root / "inverse" / "vae" / WEIGHTS, refiner):
        over(root, target, root)
    over(root, refiner, root / "base")  # beside the pipeline, and taken with it
    over(root, unet, unet)
    os.link(unet, root.parent / "hard.safetensors")
    (root.parent / "link.safetensors").symlink_to(refiner)
    for name in ("hard.safetensors", "link.safetensors"):
        over(root, root.parent / name, root)
    (root / "base" / "vae" / WEIGHTS).rename(root.parent / "elsewhere.safetensors")
    (root / "base" / "vae" / WEIGHTS).symlink_to(root.parent / "elsewhere.safetensors")
    over(root, root.parent / "elsewhere.safetensors", root / "base")
    (root.parent / "other.safetensors").write_bytes(b"as before")
    assert checkpoints.convert(root, root.parent / "other.safetensors").unet
    (root.parent / "third.safetensors").write_bytes(b"as before")
    assert checkpoints.convert(root.parent / "other.safetensors", root.parent / "third.safetensors").unet
    over(root.parent, root.parent / "other.safetensors", root.parent / "other.safetensors")
