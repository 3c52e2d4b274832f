"""What cannot be trained on is said in one line."""

import shutil
import struct
import zlib

import pytest
import training_runs as runs
from PIL import Image
from training_runs import refused

from diffharmony_models import checkpoint
from diffharmony_models.training import (
    loop,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "arguments, settings, words",
    [
        (["train-harmonizer", "{dataset}"], {}, "No VAE"),
        (["train-harmonizer", "{dataset}", "--vae", "{vae}"], {"size": 60}, "multiple of 64"),
        (["train-harmonizer", "{dataset}", "--from", "{vae}"], {}, "no 9-channel UNet"),
        (["train-harmonizer", "{dataset}/none.txt", "--vae", "{vae}"], {}, "none.txt"),
        (["train-harmonizer", "{dataset}", "--vae", "{vae}"], {"groups": 24}, "groups (24)"),
        (
            ["train-harmonizer", "{dataset}", "--vae", "{vae}"],
            {"widths": [32, 20, 32, 32], "groups": 4},
            "8 attention heads",
        ),
        (["train-harmonizer", "{dataset}", "--vae", "{vae}"], {"mixed_precision": "fp16"}, "mixed_precision"),
        (["train-autoencoder"], {}, "photos"),
        (["train-autoencoder", "none"], {}, "none"),
        (["train-autoencoder", "{dataset}"], {"groups": 32}, "groups (32)"),
        (["train-harmony-vae", "{dataset}"], {}, "--from"),
        (["train-autoencoder", "{dataset}", "--output", "{vae}"], {}, "not a folder"),
        (["train-autoencoder", "{dataset}", "--output", "{vae}/run"], {}, "not a folder"),
        (["train-refiner", "{dataset}", "--from", "{vae}"], {"crop": 30}, "crop must be a multiple of 8"),
        (["train-refiner", "{dataset}", "--from", "{vae}"], {"size": 64, "crop": 72}, "crop (72)"),
        (["train-refiner", "{dataset}", "--from", "{stage1}"], {"size": 60}, "size must be a multiple of 8"),
        (["train-refiner", "{dataset}", "--from", "{stage1}"], {"widths": [48]}, "multiples of norm_num_groups"),
        (["train-refiner", "{dataset}", "--from", "{stage1}"], {"resolution": 8}, "resolution 8 is too small"),
    ],
)
def test_bad_input_is_one_line(dataset, vae, stage1, tmp_path, capsys, arguments, settings, words):
    name, *rest = [argument.format(dataset=dataset, vae=vae, stage1=stage1) for argument in arguments]
    assert words in refused(runs.command(name, *rest, output=tmp_path / "run", **settings), capsys)


def test_a_vae_of_another_scale_is_refused(dataset, tmp_path, capsys):
    from diffusers.models import AutoencoderKL

    levels = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(
        block_out_channels=(32,) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=8, **levels
    )
    checkpoint.write(checkpoint.Checkpoint(name="f4", vae=checkpoint.part_from(vae)), tmp_path / "f4.safetensors")
    line = refused(runs.harmonizer(dataset, tmp_path / "f4.safetensors", output=tmp_path / "run"), capsys)
    assert "1/4" in line and "1/8" in line


def bomb(path):
    """A PNG of 30,000 x 30,000 pixels that has a hundred bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


BAD_PICTURES = {
    "a bomb": bomb,
    "no picture": lambda path: path.write_bytes(b"no picture"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "of other proportions": lambda path: Image.new("RGB", (72, 96)).save(path),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_a_bad_picture_is_named_in_one_line(vae, tmp_path, capsys, damage, workers):
    """That of one which no sample sheet shows: it is read for training alone, here or by a worker."""
    dataset = runs.make_dataset(tmp_path / "data", pairs=18)
    options = {"workers": workers, "sample_every": 0, "checkpoint_every": 100}
    photo, mask = (dataset / "Small" / name for name in ("real_images/p5.png", "masks/p5_1.png"))
    stage1 = runs.harmonizer(dataset, vae, output=tmp_path / "run", steps=9, **options)
    alone = runs.autoencoder(dataset, output=tmp_path / "photos", steps=9, **options)
    for path, arguments in ((photo, stage1), (mask, stage1), (photo, alone)):
        if arguments == alone and damage in (BAD_PICTURES["gone"], BAD_PICTURES["of other proportions"]):
            continue
        before = path.read_bytes()
        damage(path)
        assert str(path.with_suffix("")) in refused(arguments, capsys)
        path.write_bytes(before)


def test_empty_masks_end_a_training(vae, stage1, tmp_path, capsys):
    dataset = runs.make_dataset(tmp_path / "data", mask=0)
    output = tmp_path / "run"
    for objective in ("published", "sampler"):  # the loss is zero, and is not
        settings = {"sample_every": 0, "objective": objective}
        line = refused(runs.harmonizer(dataset, vae, output=output, steps=30, **settings), capsys)
        assert "masks of the last 10 batches are empty" in line and not (output / "harmonizer.safetensors").exists()
        assert loop.checkpoints(output)[-1].name == "checkpoint-8"  # the check comes before the tenth step's
        shutil.rmtree(output)
    for arguments in (
        runs.refiner(dataset, stage1, output=output, sample_every=0),
        runs.harmony_vae(dataset, vae, output=output, sample_every=0),
    ):
        assert "masks of the last 4 batches are empty" in refused(arguments, capsys)
        assert not list(output.glob("*.safetensors"))
        shutil.rmtree(output)
    for arguments in (
        runs.harmonizer(dataset, vae, output=output, made=True),
        runs.color_regressor(dataset, output=output),
    ):
        assert "no foreground in any mask" in refused(arguments, capsys)
