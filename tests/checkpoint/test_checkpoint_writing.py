"""Checkpoints are written whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparing import names, refused

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import Checkpoint, Part
from diffharmony_models.checkpoint import parts as parts_of

WRITER = """
import sys
from diffharmony_models import checkpoint
from diffharmony_models.checkpoint import parts
whole, finite, checked = checkpoint.read(sys.argv[1], parts=("unet",)), parts.is_finite, parts.checked
def slow(tensor):
    print("writing", flush=True)
    sys.stdin.readline()
    return finite(tensor)
def ready(*arguments):
    parts.is_finite = slow
    return checked(*arguments)
parts.checked = ready
checkpoint.write(whole, sys.argv[2])
"""


def start_writing(source: Path, target: Path) -> subprocess.Popen:
    """A process that is in the middle of writing a checkpoint, and goes on with each line that it gets."""
    package = Path(checkpoints.__file__).parents[2]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", WRITER, source, target], cwd=package, **pipes)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_for_ever(tiny, tmp_path):
    source, target = tmp_path / "tiny.safetensors", tmp_path / "out.safetensors"
    checkpoints.write(tiny, source)
    process = start_writing(source, target)
    process.kill()
    process.communicate()
    assert len(list(tmp_path.glob(".out.safetensors.*.part"))) == 1 and not target.exists()
    (tmp_path / ".other.safetensors.1.part").write_bytes(b"another target's")
    checkpoints.convert(source, target)
    assert sorted(os.listdir(tmp_path)) == [".other.safetensors.1.part", "out.safetensors", "tiny.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there the system keeps open files from being deleted")
def test_what_another_run_is_writing_is_left_to_it(tiny, tmp_path):
    source, target = tmp_path / "tiny.safetensors", tmp_path / "out.safetensors"
    checkpoints.write(tiny, source)
    process = start_writing(source, target)
    checkpoints.write(Checkpoint("mine", vae=tiny.vae), target)
    assert len(list(tmp_path.glob(".out.safetensors.*.part"))) == 1
    process.communicate("\n" * 10_000)
    assert process.returncode == 0
    assert "unet" in names(checkpoints.read(target)) and len(os.listdir(tmp_path)) == 2


def test_a_file_system_without_locks(tiny, tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    fcntl = pytest.importorskip("fcntl", reason="needs locks, as Unix has them")
    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".out.safetensors.1.part").write_bytes(b"somebody's, for all that is known")
    checkpoints.write(Checkpoint("mine", vae=tiny.vae), tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == [".out.safetensors.1.part", "out.safetensors"]


def test_an_interrupted_run_leaves_nothing(tiny, tmp_path, monkeypatch):
    checkpoints.write(Checkpoint("before", vae=tiny.vae), tmp_path / "out.safetensors")
    for kind in (KeyboardInterrupt, SystemExit, MemoryError):
        count = iter(range(1000))

        def interrupted(tensor, kind=kind, count=count):
            if next(count) == 20:
                raise kind
            return True

        with monkeypatch.context() as patch, pytest.raises(kind):
            patch.setattr(parts_of, "is_finite", interrupted)
            checkpoints.write(tiny, tmp_path / "out.safetensors")
        assert os.listdir(tmp_path) == ["out.safetensors"]
        assert names(checkpoints.read(tmp_path / "out.safetensors")) == {"vae"}


def changed(tiny: Checkpoint, **state) -> Checkpoint:
    return Checkpoint("changed", vae=tiny.vae, refiner=Part(tiny.refiner.config, tiny.refiner.state | state))


def test_writing_is_all_or_nothing(tiny, tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"as before")
    large, broken = torch.full((32,), 1e6), torch.full((32,), torch.nan)
    large, broken = changed(tiny, **{"conv_in.bias": large}), changed(tiny, **{"conv_in.bias": broken})
    refused(lambda: checkpoints.write(large, path, "fp16"), "refiner.conv_in.bias", "bf16")
    refused(lambda: checkpoints.write(broken, path), "refiner.conv_in.bias", "NaN")
    refused(lambda: checkpoints.write(Checkpoint("empty"), path), "no part")
    refused(lambda: checkpoints.write(tiny, path, "int8"), "int8", "fp16")
    refused(lambda: checkpoints.write(tiny, tmp_path / "out.bin"), "out.bin", ".safetensors")
    refused(lambda: checkpoints.write(tiny, tmp_path / "no" / "out.safetensors"), "folder that exists")
    assert os.listdir(tmp_path) == ["out.safetensors"] and path.read_bytes() == b"as before"
    checkpoints.write(large, path, "bf16")
    assert checkpoints.read(path).refiner.state["conv_in.bias"].float().mean() == pytest.approx(1e6, rel=1e-2)


def test_no_room_on_the_disk(tiny, tmp_path):
    resource = pytest.importorskip("resource", reason="needs a limit on file sizes, as Unix has it")
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"as before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"out\.safetensors"):
            checkpoints.write(tiny, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["out.safetensors"] and path.read_bytes() == b"as before"
