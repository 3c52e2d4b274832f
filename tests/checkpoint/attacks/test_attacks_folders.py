"""Folders and lists made to harm."""

import importlib
import os
import shutil
import sys
import tempfile
import time
import types
from pathlib import Path

import pytest
from attacking import JSON, SAID, SPECIAL, refused, special
from support import FOLDERS, WEIGHTS

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


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
    whole = checkpoints.read(root)
    assert whole.unet and whole.refiner


def test_paths_that_lead_nowhere(tmp_path):
    for path in ("x" * 5000, "a\0b", tmp_path / "x" / ("y" * 300), tmp_path / "\udcff"):
        with pytest.raises(InputError):
            checkpoints.read(path)


def node_module(name: str) -> types.ModuleType:
    """A module of nodes/ that needs no ComfyUI, without the package around it, which does."""
    for package, folder in (("without_host", ROOT), ("without_host.nodes", ROOT / "nodes")):
        sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(folder)]
    return importlib.import_module(f"without_host.nodes.{name}")


@pytest.fixture
def listing(tmp_path, monkeypatch) -> types.ModuleType:
    """nodes/host/folders.py, with a folder of models, which is empty, and another that is not there."""
    module = node_module("host.folders")
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(module, "folders", lambda: [str(tmp_path / "models"), str(tmp_path / "gone")])
    return module


def tree(root: Path, at: Path) -> list[str]:
    """Good checkpoints in a folder of models; their names in the list."""
    shutil.copytree(root, at / "good" / "zip")
    shutil.copy(root / "refinement" / WEIGHTS, at / "z last.safetensors")
    return ["good/zip/base", "z last.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and links, as Unix has them")
def test_one_bad_entry_never_takes_the_list_away(root, tmp_path, listing):
    models = tmp_path / "models"
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
    assert listing.names() == [listing.BUNDLED, *good]
    assert time.perf_counter() - start < 10
    for name in good:
        assert listing.resolve(name) == models / name
        assert str(models / name) in str(listing.fingerprint(name))


@pytest.mark.skipif(sys.platform == "win32", reason="needs links, as Unix has them")
def test_the_list_is_made_in_bounded_time(root, tmp_path, monkeypatch, caplog, listing):
    good = tree(root, tmp_path / "models")
    crowded = tmp_path / "models" / "crowded"
    crowded.mkdir()
    for number in range(60):
        (crowded / f"side {number}").mkdir()
        for other in range(60):
            (crowded / f"side {number}" / f"to {other}").symlink_to(f"../side {other}")
    start = time.perf_counter()
    assert listing.names() == [listing.BUNDLED, *good]
    assert time.perf_counter() - start < 10 and not caplog.text
    monkeypatch.setattr(listing.rules, "_MOST_ENTRIES", 200)
    (tmp_path / "models" / "new").mkdir()
    assert listing.names() == [listing.BUNDLED, good[1]]
    assert "too much" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="needs links, as Unix has them")
def test_a_link_to_a_checkpoint_elsewhere_is_in_the_list(root, tmp_path, listing):
    (tmp_path / "models" / "deep").mkdir()
    (tmp_path / "models" / "linked").symlink_to(root / "base")
    (tmp_path / "models" / "deep" / "zip").symlink_to(root)
    (tmp_path / "models" / "file.safetensors").symlink_to(root / FOLDERS["refiner"] / WEIGHTS)
    assert listing.names()[1:] == ["deep/zip/base", "file.safetensors", "linked"]


def test_a_list_is_made_again_where_something_has_changed_and_nowhere_else(root, tmp_path, monkeypatch, listing):
    models, good = tmp_path / "models", tree(root, tmp_path / "models")
    (models / "half").mkdir()
    (models / "half" / "model_index.json").write_text("{}")
    walked, below = [], listing.rules.below
    monkeypatch.setattr(listing.rules, "below", lambda folder: walked.append(folder) or below(folder))
    for _ in range(3):
        assert listing.names() == [listing.BUNDLED, *good]
    assert listing.resolve(good[0]) == models / good[0]
    assert listing.fault("good/zip/inverse") and listing.fault("good/zip/base/tokenizer")
    assert walked == [models]
    (models / "half" / "unet").mkdir()  # a folder that is being copied
    assert listing.names() == [listing.BUNDLED, good[0], "half", good[1]]
    (models / "z last.safetensors").unlink()
    assert listing.names() == [listing.BUNDLED, good[0], "half"]


def test_a_part_alone_is_in_the_list_and_one_beside_a_pipeline_is_not(root, tmp_path, listing):
    shutil.copytree(root, tmp_path / "models" / "zip")
    shutil.copytree(root / "refinement", tmp_path / "models" / "parts" / "sharper")
    assert listing.names()[1:] == ["parts/sharper", "zip/base"]
    assert listing.resolve("parts/sharper") and checkpoints.read(listing.resolve("parts/sharper")).refiner


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs root, to be somebody else")
def test_folders_that_may_not_be_read(root, monkeypatch, listing):
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        monkeypatch.setattr(listing, "folders", lambda: [folder])
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
            assert {listing.BUNDLED, *good} <= set(listing.names())
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
