"""Which folder is which checkpoint."""

import shutil

import pytest
import torch
from comparing import PUBLISHED, names, refused, same
from safetensors.torch import save_file
from support import WEIGHTS, lay

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import Part, files
from diffharmony_models.checkpoint.kinds import KINDS

LEVELS = {  # what is pointed at, and what must come of it
    ".": {*PUBLISHED, "null_text"},
    "base": {*PUBLISHED, "null_text"},
    "base/unet": {"unet"},
    "base/vae": {"vae"},
    "base/text_encoder": {"null_text"},
    f"base/unet/{WEIGHTS}": {"unet"},
    "base/text_encoder/pytorch_model.bin": {"null_text"},
    "refinement": {"refiner"},
    f"refinement/{WEIGHTS}": {"refiner"},
    "condition_vae": {"harmony_vae"},
    "inverse/vae": {"vae"},
}


@pytest.mark.parametrize("where", LEVELS)
def test_published_layout(where, root, tiny):
    loaded = checkpoints.read(root / where)
    assert names(loaded) == LEVELS[where]
    for kind in LEVELS[where] - {"null_text"}:
        assert same(getattr(loaded, kind), getattr(tiny, kind)), kind
    assert loaded.prediction_type == "epsilon" and loaded.resolution == 1024


@pytest.mark.parametrize("where", [".", "my_harmony"])
def test_renamed_copies(where, root, tiny):
    new_names = {"base": "my_harmony", "refinement": "stuff", "condition_vae": "x", "inverse": "a first one"}
    for old, new in new_names.items():
        (root / old).rename(root / new)
    (root / "stuff" / WEIGHTS).rename(root / "stuff" / "downloaded.safetensors")
    loaded = checkpoints.read(root / where)
    assert names(loaded) == {*PUBLISHED, "null_text"}
    assert all(same(getattr(loaded, kind), getattr(tiny, kind)) for kind in PUBLISHED)


def test_misleading_names(root, tiny):
    """A kind follows from what is inside, not from a name: here the names have been swapped."""
    (root / "refinement").rename(root / "vae")
    (root / "condition_vae").rename(root / "refinement")
    loaded = checkpoints.read(root)
    assert same(loaded.refiner, tiny.refiner) and same(loaded.harmony_vae, tiny.harmony_vae)


def test_parts_side_by_side_without_a_pipeline(tiny, text_encoder, tmp_path):
    folder = tmp_path / "flat"
    for kind, name in zip(PUBLISHED, ("unet", "vae", "refiner", "condition_vae")):
        lay(folder / name, getattr(tiny, kind))
    lay(folder / "text_encoder", text_encoder, "model.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    loaded = checkpoints.read(folder)
    assert names(loaded) == {*PUBLISHED, "null_text"} and loaded.prediction_type == "v_prediction"
    assert checkpoints.read(folder / "unet").prediction_type == "v_prediction"


def test_what_is_no_checkpoints_folder(root, tiny, tmp_path):
    """Nobody guesses what belongs together: weights without their configs, parts without a UNet, a folder of files."""
    loose = tmp_path / "loose"
    loose.mkdir()
    for kind in ("vae", "refiner", "unet"):
        save_file(getattr(tiny, kind).state, loose / f"{kind}.safetensors")
        refused(lambda kind=kind: checkpoints.read(loose / f"{kind}.safetensors"), KINDS[kind].title, "config.json")
    refused(lambda: checkpoints.read(loose), "nothing of DiffHarmony", "one file")
    checkpoints.write(tiny, loose / "whole.safetensors")
    refused(lambda: checkpoints.read(loose), "nothing of DiffHarmony", "one file")
    shutil.rmtree(root / "base")
    refused(lambda: checkpoints.read(root), "nothing of DiffHarmony", "base/")


def test_two_of_one_kind_are_asked_about(root):
    shutil.copytree(root / "refinement", root / "refinement large")
    for where in (root, root / "base"):
        refused(lambda where=where: checkpoints.read(where), "refinement large", "more than one refiner", "Move one")
    shutil.copytree(root / "refinement", root / "base" / "mine")  # inside the pipeline: no doubt
    refused(lambda: checkpoints.read(root / "base"), "more than one refiner")
    shutil.rmtree(root / "refinement large")
    assert names(checkpoints.read(root / "base")) == {*PUBLISHED, "null_text"}
    (root / "again").symlink_to("refinement")  # the same one by another way
    assert names(checkpoints.read(root)) == {*PUBLISHED, "null_text"}
    (root / "condition_vae" / "config.json").write_text("{")
    assert names(checkpoints.read(root / "base")) == {*PUBLISHED, "null_text"} - {"harmony_vae"}


@pytest.mark.parametrize("where", ["inverse", "inverse/weights-102800", f"inverse/weights-102800/{WEIGHTS}"])
def test_inverse_model_is_refused(where, root):
    refused(lambda: checkpoints.read(root / where), "inverse", "Point at")


@pytest.mark.parametrize("copy", ["another", "inverse/unet"])
def test_two_pipelines_are_asked_about(copy, root):
    shutil.copytree(root / ("base" if copy == "another" else "inverse/weights-102800"), root / copy)
    other = root / copy / "unet" if copy == "another" else root / copy
    refused(lambda: checkpoints.read(root), str(root / "base" / "unet"), str(other), "Point at one")
    assert names(checkpoints.read(other)) == {"unet"}
    assert names(checkpoints.read(root / "base")) == {*PUBLISHED, "null_text"}


def test_a_text_to_image_pipeline_is_refused(root, tiny):
    conv = tiny.unet.state["conv_in.weight"][:, :4].contiguous()
    part = Part(tiny.unet.config | {"in_channels": 4}, tiny.unet.state | {"conv_in.weight": conv})
    lay(root / "base" / "unet", part)
    refused(lambda: checkpoints.read(root), "9-channel inpainting UNet", "takes 4 channels")


def test_a_file_is_opened_once_and_a_part_read_when_it_is_asked_for(root, tiny, tmp_path, monkeypatch):
    opened, safe_open = [], files.safe_open
    monkeypatch.setattr(files, "safe_open", lambda path, *more: opened.append(path) or safe_open(path, *more))
    checkpoints.write(tiny, tmp_path / "tiny.safetensors")
    reader = checkpoints.Reader(tmp_path / "tiny.safetensors")
    assert same(reader.part("vae"), tiny.vae) and same(reader.part("unet"), tiny.unet)
    assert torch.equal(reader.null_text(), tiny.null_text) and reader.part("text_encoder") is None
    assert opened == [tmp_path / "tiny.safetensors"]
    reader = checkpoints.Reader(root)
    assert len(opened) == 1
    assert same(reader.part("vae"), tiny.vae)
    assert opened[1:] == [root / "base" / "vae" / WEIGHTS]


def test_only_some_parts(root):
    assert names(checkpoints.read(root, parts=("refiner", "vae"))) == {"refiner", "vae"}
    refused(lambda: checkpoints.read(root, parts=("decoder",)), "decoder", "harmony_vae")
