"""The command line as a user meets it: what is written, what is said, and the exit code."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from safetensors.torch import load_file, save_file

from diffharmony_models import __version__, checkpoint, geometry
from diffharmony_models.__main__ import COMMANDS, PROGRAM, _parser, main
from diffharmony_models.files import images
from diffharmony_models.networks.refiner import Refiner

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 72, 100


def _part(model) -> checkpoint.Part:
    return checkpoint.Part(dict(model.config), {name: tensor.clone() for name, tensor in model.state_dict().items()})


@pytest.fixture(scope="session")
def tiny() -> checkpoint.Checkpoint:
    """A whole DiffHarmony with random weights at the smallest widths, working at 64."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=9, out_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=8, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1, latent_channels=4,
        norm_num_groups=4, scaling_factor=0.18215,
    )  # fmt: skip
    unet_part, vae_part = _part(unet), _part(vae)
    unet_part.config["_class_name"], vae_part.config["_class_name"] = "UNet2DConditionModel", "AutoencoderKL"
    refiner = Refiner(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    return checkpoint.Checkpoint(
        "tiny", unet=unet_part, vae=vae_part, refiner=_part(refiner), null_text=torch.randn(2, 8), resolution=64
    )  # fmt: skip


@pytest.fixture(scope="session")
def weights(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.write(tiny, path)
    return path


def make_pair(
    folder: Path, name: str = "a", mask_name: str | None = None, number: int = 0, extension: str = "png"
) -> tuple[Path, Path]:
    """A composite and its mask in folder/composites and folder/masks: noise over a gradient, a box in the middle."""
    composites, masks = folder / "composites", folder / "masks"
    composites.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    pixels = np.random.default_rng(number).integers(40, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:52, 30:70] = 255
    paths = composites / f"{name}.{extension}", masks / f"{mask_name or name}.png"
    Image.fromarray(pixels).save(paths[0])
    Image.fromarray(mask).save(paths[1])
    return paths


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return make_pair(tmp_path)


def command(*argv) -> int:
    return main([str(argument) for argument in argv])


def said(capsys) -> str:
    """What stands on stderr; also: nothing there may look like a traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def refused(capsys, *argv) -> str:
    """Runs a command that must end in exit code 2 with exactly one line."""
    assert command(*argv) == 2
    text = said(capsys)
    assert text.count("\n") == 1 and text.startswith("error: "), text
    return text


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# --- one picture


@pytest.mark.parametrize("ending", [[], ["--paper"], ["--paper", "--no-refine"], ["--no-refine"]])
def test_foreground_changes_and_background_does_not(tmp_path, pair, weights, capsys, ending):
    out = tmp_path / "out.png"
    assert command("harmonize", *pair, out, "--checkpoint", weights, *ending) == 0
    assert str(out) in said(capsys)
    before, after, mask = pixels_of(pair[0]), pixels_of(out), pixels_of(pair[1]) > 0
    assert after.shape == before.shape
    assert np.array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).mean() > 0.5


def test_the_refiner_takes_part_in_the_papers_ending(tmp_path, pair, weights):
    with_it, without = tmp_path / "with.png", tmp_path / "without.png"
    assert command("harmonize", *pair, with_it, "--checkpoint", weights, "--paper") == 0
    assert command("harmonize", *pair, without, "--checkpoint", weights, "--paper", "--no-refine") == 0
    assert not np.array_equal(pixels_of(with_it), pixels_of(without))


def test_seed_steps_sampler_resolution_and_shape_count(tmp_path, pair, weights):
    made = {}
    for options in (
        "",
        "--seed 0",
        "--seed 1",
        "--steps 2",
        "--sampler euler",
        "--resolution 192",
        "--resolution 192 --shape square",
    ):
        out = tmp_path / "out.png"
        assert (
            command("harmonize", *pair, out, "--checkpoint", weights, "--paper", "--no-refine", *options.split()) == 0
        )
        made[options] = out.read_bytes()
    assert made[""] == made["--seed 0"]
    assert len(set(made.values())) == len(made) - 1


@pytest.mark.parametrize("size, expected", [("50", (50, 36)), ("200", (200, 144)), ("40x90", (40, 90))])
@pytest.mark.parametrize("ending", [[], ["--paper"]])
def test_output_size(tmp_path, pair, weights, size, expected, ending):
    out = tmp_path / "out.png"
    assert command("harmonize", *pair, out, "--checkpoint", weights, "--output-size", size, *ending) == 0
    before, after = (images.read_image(path).pixels for path in (pair[0], out))
    width, height = expected
    scaled, mask = (geometry.resize(image, (height, width)) for image in (before, images.read_mask(pair[1])))
    assert after.shape == (1, 3, height, width)
    outside = (mask == 0).expand_as(after)
    assert (after - scaled)[outside].abs().max() < 1.01 / 255  # the whole picture, scaled
    assert ((after - scaled)[~outside].abs() > 1.01 / 255).float().mean() > 0.3


def test_alpha_and_profile_go_through(tmp_path, pair, weights, capsys):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgba = np.dstack([pixels_of(pair[0]), np.tile(np.arange(WIDTH, dtype=np.uint8) + 100, (HEIGHT, 1))])
    Image.fromarray(rgba).save(pair[0], icc_profile=profile)
    for name in ("out.png", "out.webp", "out.jpg"):
        assert command("harmonize", *pair, tmp_path / name, "--checkpoint", weights) == 0
        with Image.open(tmp_path / name) as written:
            assert written.info["icc_profile"] == profile
            if name == "out.jpg":
                assert written.mode == "RGB" and "transparency" in said(capsys)
            else:
                assert np.array_equal(np.asarray(written)[:, :, 3], rgba[:, :, 3])


def test_comparison_sheet(tmp_path, pair, weights):
    smooth = Image.fromarray(pixels_of(pair[0])).resize((9, 7)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    smooth.save(pair[0])
    assert (
        command(
            "harmonize",
            *pair,
            tmp_path / "out.png",
            "--checkpoint",
            weights,
            "--compare",
            tmp_path / "sheets" / "sheet.png",
        )
        == 0
    )
    sheet = pixels_of(tmp_path / "sheets" / "sheet.png").astype(float)
    width, height = 512, round(512 * HEIGHT / WIDTH)

    def panel(row: int, column: int) -> np.ndarray:
        """One of the four pictures, scaled back to the composite's size."""
        left, top = 8 + column * (width + 8), 8 + 26 + 26 + row * (height + 8 + 26)
        shown = Image.fromarray(sheet[top : top + height, left : left + width].astype(np.uint8))
        return np.asarray(shown.resize((WIDTH, HEIGHT), Image.Resampling.BOX)).astype(float)

    assert sheet.shape == (8 + 26 + 2 * (26 + height + 8), 8 + 2 * (width + 8), 3)
    composite, mask, result = (pixels_of(path).astype(float) for path in (*pair, tmp_path / "out.png"))
    assert np.abs(panel(0, 0) - composite).mean() < 6 < np.abs(result - composite)[mask > 0].mean()
    assert np.abs(panel(0, 1) - mask[:, :, None]).mean() < 6
    assert np.abs(panel(1, 1) - result).mean() < 6
    harmonized = panel(1, 0)  # what the model painted: of another background than all the others
    assert all(np.abs(harmonized - other).mean() > 15 for other in (composite, mask[:, :, None], result))
    assert 20 < harmonized.mean() < 235


@pytest.mark.parametrize(
    "value, words", [(0, "brightest value is 0"), (1, "brightest value is 1"), (120, "brightest value is 120")]
)
def test_empty_mask_gives_the_composite_back_with_a_note(tmp_path, pair, weights, capsys, value, words):
    Image.new("L", (WIDTH, HEIGHT), value).save(pair[1])
    out = tmp_path / "out.png"
    assert command("harmonize", *pair, out, "--checkpoint", weights, "--compare", tmp_path / "sheet.png") == 0
    assert words in said(capsys)
    assert np.array_equal(pixels_of(out), pixels_of(pair[0]))


@pytest.mark.parametrize("dot", [False, True], ids=["full", "one pixel"])
def test_full_mask_and_mask_smaller_than_a_latent(tmp_path, pair, weights, dot):
    mask = np.full((HEIGHT, WIDTH), 0 if dot else 255, np.uint8)
    mask[30, 40] = 255
    Image.fromarray(mask).save(pair[1])
    assert command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights) == 0
    before, after = pixels_of(pair[0]), pixels_of(tmp_path / "out.png")
    changed = (after != before).any(axis=2)
    assert not changed[mask == 0].any() and changed[mask > 0].mean() > 0.9


def test_golden_weights_work_from_their_folder(tmp_path, pair, golden_dir):
    assert command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", golden_dir, "--resolution", 64) == 0
    assert command("convert", golden_dir, tmp_path / "one.safetensors") == 0
    assert (
        command(
            "harmonize", *pair, tmp_path / "again.png", "--checkpoint", tmp_path / "one.safetensors", "--resolution", 64
        )
        == 0
    )
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "again.png").read_bytes()


# --- folders


@pytest.fixture
def folders(tmp_path) -> Path:
    """Three good pairs, one of them with iHarmony4's names, and four composites that cannot be harmonized."""
    make_pair(tmp_path, "a", number=1)
    make_pair(tmp_path, "b.c", number=2, extension="jpg")
    make_pair(tmp_path, "c100_7_1", "c100_7", number=3, extension="bmp")
    make_pair(tmp_path, "cut")
    (tmp_path / "composites" / "cut.png").write_bytes((tmp_path / "composites" / "cut.png").read_bytes()[:400])
    make_pair(tmp_path, "small")
    Image.new("L", (WIDTH // 2, HEIGHT // 2), 255).save(tmp_path / "masks" / "small.png")
    make_pair(tmp_path, "lonely")[1].unlink()
    make_pair(tmp_path, "twice")
    Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "masks" / "twice.bmp")
    (tmp_path / "composites" / "notes.txt").write_text("no picture")
    return tmp_path


def test_folder_goes_on_says_what_failed_and_skips_what_is_done(folders, weights, capsys):
    arguments = ["harmonize", folders / "composites", folders / "masks", folders / "out", "--checkpoint", weights]
    assert command(*arguments) == 2
    text = said(capsys)
    assert sorted(os.listdir(folders / "out")) == ["a.png", "b.c.jpg", "c100_7_1.png"]
    assert "3 harmonized, 0 were there already, 4 failed" in text
    for name, why in (
        ("cut.png", "damaged"),
        ("small.png", "50x36"),
        ("lonely.png", "no mask"),
        ("twice.png", "several masks"),
    ):
        assert [line for line in text.splitlines() if line.startswith(f"  {name}: ") and why in line], text

    (folders / "out" / "a.png").write_bytes(b"mine")
    (folders / "out" / "b.c.jpg").unlink()
    assert command(*arguments) == 2
    assert "1 harmonized, 2 were there already, 4 failed" in said(capsys)
    assert (folders / "out" / "a.png").read_bytes() == b"mine"

    assert command(*arguments, "--overwrite") == 2
    assert "3 harmonized" in said(capsys)
    assert pixels_of(folders / "out" / "a.png").shape == (HEIGHT, WIDTH, 3)


def test_each_picture_has_its_own_noise_the_same_alone_and_in_a_folder(tmp_path, weights):
    for name in ("a", "b", "z"):
        make_pair(tmp_path, name)  # the same picture under three names
    common = ["--checkpoint", weights, "--paper", "--no-refine", "--seed", 3, "--compare"]
    composites, masks = tmp_path / "composites", tmp_path / "masks"
    assert command("harmonize", composites, masks, tmp_path / "out", *common, tmp_path / "sheets") == 0
    assert sorted(os.listdir(tmp_path / "sheets")) == ["a.png", "b.png", "z.png"]
    together = {name: (tmp_path / "out" / f"{name}.png").read_bytes() for name in "abz"}
    assert len(set(together.values())) == 3
    assert (
        command("harmonize", composites / "z.png", masks / "z.png", tmp_path / "z.png", *common, tmp_path / "sheet.png")
        == 0
    )
    assert (tmp_path / "z.png").read_bytes() == together["z"]


def test_a_folder_that_is_done_needs_no_weights(tmp_path, weights, capsys):
    make_pair(tmp_path)
    arguments = ["harmonize", tmp_path / "composites", tmp_path / "masks", tmp_path / "out", "--checkpoint"]
    assert command(*arguments, weights) == 0
    assert command(*arguments, tmp_path / "gone.safetensors") == 0
    assert "0 harmonized, 1 were there already, 0 failed" in said(capsys)


def test_names_that_would_meet_in_one_result(tmp_path, weights, capsys):
    make_pair(tmp_path, "a")
    make_pair(tmp_path, "a", extension="bmp")
    assert (
        command("harmonize", tmp_path / "composites", tmp_path / "masks", tmp_path / "out", "--checkpoint", weights)
        == 2
    )
    assert "a.png: its result would have the name of that of a.bmp" in said(capsys)


def test_a_disk_that_takes_no_more_stops_the_folder(tmp_path, weights, capsys):
    resource = pytest.importorskip("resource")
    for name in "abc":
        make_pair(tmp_path, name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the system refuses every larger file
    try:
        arguments = ["harmonize", tmp_path / "composites", tmp_path / "masks", tmp_path / "out"]
        assert command(*arguments, "--checkpoint", weights) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = said(capsys)
    assert "error: cannot write (File too large): " in text and "a.png" in text.splitlines()[-1]
    assert "b.png" not in text and "failed" not in text  # the others were not tried
    assert os.listdir(tmp_path / "out") == []


def short_profile(path: Path) -> None:
    """A TIFF whose colour profile is of type SHORT."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34675] = 5
    tags.tagtype[34675] = 3
    with Image.open(path) as image:
        image.save(path.with_suffix(".tif"), tiffinfo=tags)
    path.unlink()


def test_one_pictures_fault_is_that_pictures(tmp_path, weights, capsys):
    """Even a fault of the program: it is named and counted, its traceback is shown, and the rest is done."""
    for name in "abcde":
        make_pair(tmp_path, name)
    composites, out = tmp_path / "composites", tmp_path / "out"
    short_profile(composites / "b.png")
    (composites / "c.png").unlink()
    os.mkfifo(composites / "c.png")
    arguments = ["harmonize", composites, tmp_path / "masks", out, "--checkpoint", weights]
    with pytest.MonkeyPatch.context() as patch:
        read = images.read_mask

        def broken(path):
            return {}["no such key"] if path.stem == "d" else read(path)

        patch.setattr(images, "read_mask", broken)
        assert command(*arguments) == 2
    text = capsys.readouterr().err
    assert sorted(os.listdir(out)) == ["a.png", "b.png", "e.png"]
    assert "3 harmonized, 0 were there already, 2 failed" in text
    assert "  c.png: " in text and "not a regular file" in text
    assert "  d.png: KeyError: 'no such key'" in text and text.count("Traceback") == 1


def test_what_is_no_result_is_not_taken_for_one(tmp_path, weights, capsys):
    for name in "abc":
        make_pair(tmp_path, name)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").touch()
    (out / "b.png").mkdir()
    (out / "c.png").symlink_to(out / "gone.png")
    assert command("harmonize", tmp_path / "composites", tmp_path / "masks", out, "--checkpoint", weights) == 2
    text = said(capsys)
    assert "2 harmonized, 0 were there already, 1 failed" in text and "b.png is a folder" in text
    assert pixels_of(out / "a.png").shape == pixels_of(out / "c.png").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there all names are Unicode")
def test_names_need_not_be_utf8(tmp_path, weights, capsys):
    for name in (os.fsdecode(b"\xff\xe9"), "two\nlines", "\x1b[31mred"):
        make_pair(tmp_path, name)
    arguments = [tmp_path / "composites", tmp_path / "masks", tmp_path / "out", "--compare", tmp_path / "sheets"]
    assert command("harmonize", *arguments, "--checkpoint", weights) == 0
    assert len(os.listdir(tmp_path / "out")) == len(os.listdir(tmp_path / "sheets")) == 3
    said(capsys)
    for path in sorted((tmp_path / "composites").iterdir()):
        path.write_text("no picture")
        text = refused(capsys, "harmonize", path, path, tmp_path / "out.png", "--checkpoint", weights)
        text.encode("utf-8")  # nothing that a terminal could not show
    assert command("harmonize", *arguments[:2], tmp_path / "again", "--checkpoint", weights) == 2
    text = said(capsys)
    assert "  \\udcff\\udce9.png: " in text and "\\x1b[31mred" in text and "\x1b[31m" not in text


# --- bad input


def save_raw(path: Path, whole: checkpoint.Checkpoint) -> Path:
    """Writes a one-file checkpoint without any of the checks of `checkpoint.write`."""
    tensors = {} if whole.null_text is None else {"null_text": whole.null_text}
    metadata = {"format": "diffharmony", "resolution": str(whole.resolution), "prediction_type": whole.prediction_type}
    for name in ("unet", "vae", "refiner"):
        part = getattr(whole, name)
        if part is not None:
            metadata[name] = json.dumps(part.config)
            tensors |= {f"{name}.{key}": tensor.contiguous() for key, tensor in part.state.items()}
    save_file(tensors, path, metadata)
    return path


def changed(part: checkpoint.Part, config: dict | None = None, **state) -> checkpoint.Part:
    return checkpoint.Part(
        part.config | (config or {}), part.state | {key.replace("__", "."): value for key, value in state.items()}
    )


def write_pickle(path: Path, evil: Path) -> Path:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(evil),)

    with open(path, "wb") as file:
        pickle.dump({"conv_in.weight": Evil()}, file)
    return path


def four_channels(tiny):
    return changed(tiny.unet, {"in_channels": 4}, conv_in__weight=tiny.unet.state["conv_in.weight"][:, :4])


def overflowing(tiny):
    bias = tiny.unet.state["conv_out.bias"]
    return changed(tiny.unet, conv_out__bias=torch.full_like(bias, 3e38))


BAD_WEIGHTS = {
    "no such file": (lambda folder, tiny: folder / "gone.safetensors", "gone.safetensors"),
    "no such folder": (lambda folder, tiny: folder / "gone", "gone"),
    "empty folder": (lambda folder, tiny: (folder / "nothing").mkdir() or folder / "nothing", "nothing"),
    "empty file": (
        lambda folder, tiny: (folder / "w.safetensors").write_bytes(b"") * 0 or folder / "w.safetensors",
        "damaged",
    ),
    "text": (
        lambda folder, tiny: (folder / "w.safetensors").write_text("hello") and folder / "w.safetensors",
        "damaged",
    ),
    "cut short": (lambda folder, tiny: cut(save_raw(folder / "w.safetensors", tiny)), "damaged"),
    "a picture": (lambda folder, tiny: folder / "composites" / "a.png", "a.png"),
    "a pickle that runs code": (lambda folder, tiny: write_pickle(folder / "w.bin", folder / "evil"), "run code"),
    "no VAE": (lambda folder, tiny: save_raw(folder / "w.safetensors", replace(tiny, vae=None)), "VAE"),
    "no UNet": (lambda folder, tiny: save_raw(folder / "w.safetensors", replace(tiny, unet=None)), "UNet"),
    "no null text": (
        lambda folder, tiny: save_raw(folder / "w.safetensors", replace(tiny, null_text=None)),
        "null text",
    ),
    "no refiner": (lambda folder, tiny: save_raw(folder / "w.safetensors", replace(tiny, refiner=None)), "--no-refine"),
    "4 channels": (
        lambda folder, tiny: save_raw(folder / "w.safetensors", replace(tiny, unet=four_channels(tiny))),
        "4 channels",
    ),
    "other widths": (
        lambda folder, tiny: save_raw(
            folder / "w.safetensors", replace(tiny, vae=changed(tiny.vae, {"block_out_channels": [8, 8, 16, 16]}))
        ),
        "tensors do not fit its config",
    ),
    "other layers": (
        lambda folder, tiny: save_raw(
            folder / "w.safetensors", replace(tiny, unet=changed(tiny.unet, {"layers_per_block": 2}))
        ),
        "UNet",
    ),
    "NaN in the weights": (
        lambda folder, tiny: save_raw(
            folder / "w.safetensors",
            replace(tiny, refiner=changed(tiny.refiner, conv_out__bias=torch.full((3,), float("nan")))),
        ),
        "NaN",
    ),
    "NaN in the output": (
        lambda folder, tiny: save_raw(folder / "w.safetensors", replace(tiny, unet=overflowing(tiny))),
        "NaN",
    ),
}


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-1000])
    return path


@pytest.mark.parametrize("make, words", BAD_WEIGHTS.values(), ids=BAD_WEIGHTS.keys())
def test_bad_weights(tmp_path, pair, tiny, capsys, make, words):
    arguments = ["harmonize", *pair, tmp_path / "out.png", "--paper", "--checkpoint", make(tmp_path, tiny)]
    assert words in refused(capsys, *arguments)
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "evil").exists()


def in_place(change):
    """A change to the files of the pair, before the ordinary command."""

    def make(folder, composite, mask):
        change(composite, mask)
        return [composite, mask, folder / "out.png"]

    return make


BAD_INPUT = {
    "no composite": (in_place(lambda composite, mask: composite.unlink()), "there is no such file"),
    "no mask": (in_place(lambda composite, mask: mask.unlink()), "there is no such file"),
    "text as composite": (in_place(lambda composite, mask: composite.write_text("hello")), "not a picture"),
    "cut composite": (
        in_place(lambda composite, mask: composite.write_bytes(composite.read_bytes()[:999])),
        "damaged or cut short",
    ),
    "an EPS by another name": (in_place(lambda composite, mask: eps(composite)), "not a picture"),
    "a pipe": (in_place(lambda composite, mask: composite.unlink() or os.mkfifo(composite)), "not a regular file"),
    "a device": (in_place(lambda composite, mask: mask.unlink() or mask.symlink_to("/dev/zero")), "not a regular file"),
    "a link to itself": (in_place(lambda composite, mask: mask.unlink() or mask.symlink_to(mask)), "no such file"),
    "a name too long": (lambda folder, composite, mask: [composite, "m" * 300, folder / "out.png"], "too long"),
    "a name with a null": (lambda folder, composite, mask: [composite, "m\0", folder / "out.png"], "no such file"),
    "an empty name": (lambda folder, composite, mask: ["", mask, folder / "out.png"], "is empty"),
    "an empty result's name": (lambda folder, composite, mask: [composite, mask, ""], "is empty"),
    "out is a link to itself": (
        lambda folder, composite, mask: [composite, mask, loop(folder / "out.png")],
        "out.png: cannot write there",
    ),
    "out in a link to itself": (
        lambda folder, composite, mask: [composite, mask, loop(folder / "loop") / "out.png"],
        "out.png: cannot write there",
    ),
    "a folder's out is a link to itself": (
        lambda folder, composite, mask: [composite.parent, mask.parent, loop(folder / "loop")],
        "must be a folder",
    ),
    "out's name is too long": (
        lambda folder, composite, mask: [composite, mask, folder / ("o" * 300 + ".png")],
        "cannot write there",
    ),
    "out is a pipe": (
        lambda folder, composite, mask: [composite, mask, os.mkfifo(folder / "out.png") or folder / "out.png"],
        "not a regular file",
    ),
    "cut mask": (in_place(lambda composite, mask: mask.write_bytes(mask.read_bytes()[:80])), "damaged or cut short"),
    "sizes differ": (in_place(lambda composite, mask: Image.new("L", (50, 40), 255).save(mask)), "100x72 but its mask"),
    "sizes differ by EXIF": (in_place(lambda composite, mask: turn(composite)), "EXIF"),
    "long and thin": (
        in_place(lambda composite, mask: [Image.new("L", (9000, 4), 255).save(path) for path in (composite, mask)]),
        "thin",
    ),
    "a folder and a mask": (
        lambda folder, composite, mask: [composite.parent, mask, folder / "out"],
        "folder of masks",
    ),
    "a composite and a folder": (
        lambda folder, composite, mask: [composite, mask.parent, folder / "out.png"],
        "is a folder",
    ),
    "folders and a file": (
        lambda folder, composite, mask: [composite.parent, mask.parent, folder / "out.png"],
        "must be a folder",
    ),
    "results among the inputs": (
        lambda folder, composite, mask: [composite.parent, mask.parent, composite.parent],
        "must differ",
    ),
    "masks among the composites": (
        lambda folder, composite, mask: [composite.parent, composite.parent, folder / "out"],
        "must differ",
    ),
    "an empty folder": (lambda folder, composite, mask: [empty(folder), mask.parent, folder / "out"], "no picture"),
    "out without extension": (lambda folder, composite, mask: [composite, mask, folder / "out"], ".png, .jpg or .webp"),
    "out of unknown extension": (
        lambda folder, composite, mask: [composite, mask, folder / "out.xyz"],
        ".png, .jpg or .webp",
    ),
    "out is the composite": (lambda folder, composite, mask: [composite, mask, composite], "over an input"),
    "out is a folder": (lambda folder, composite, mask: [composite, mask, empty(folder, "out.png")], "is a folder"),
    "out in a file": (lambda folder, composite, mask: [composite, mask, composite / "out.png"], "is a file"),
    "sheet of unknown extension": (
        lambda *paths: [*paths[1:], paths[0] / "out.png", "--compare", "sheet"],
        ".png, .jpg or .webp",
    ),
    "sheet is the result": (
        lambda *paths: [*paths[1:], paths[0] / "o.png", "--compare", paths[0] / "o.png"],
        "different names",
    ),
    "too large for WebP": (
        lambda *paths: [*paths[1:], paths[0] / "out.webp", "--output-size", "20000x10"],
        "write a .png",
    ),
    "unknown device": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--device", "abacus"], "there is cpu"),
    "absent device": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--device", "cuda:77"], "there is cpu"),
    "unknown dtype": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--dtype", "int8"], "bfloat16"),
    "no steps": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "0"], "from 1"),
    "half a step": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "2.5"], "whole number"),
    "low resolution": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--resolution", "32"], "at least 64"),
    "absurd resolution": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--resolution", "1000000"], "to 4096"),
    "odd square": (
        lambda *paths: [*paths[1:], paths[0] / "out.png", "--resolution", "100", "--shape", "square"],
        "multiple of 64",
    ),
    "huge output": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--output-size", "60000x60000"], "megapixels"),
    "absurd output size": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--output-size", "0x5"], "WIDTHxHEIGHT"),
    "negative feather": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--feather", "-3"], "from 0"),
    "a seed of 5,000 digits": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--seed", "1" * 5000], "whole number"),
    "other digits": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "\u0663"], "whole number"),
    "digits in groups": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--steps", "1_0"], "whole number"),
    "no number": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--feather", "nan"], "whole number"),
    "an option of two lines": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--a\nb"], "unrecognized arguments"),
    "unknown sampler": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--sampler", "heun"], "euler_ancestral"),
    "unknown option": (lambda *paths: [*paths[1:], paths[0] / "out.png", "--magic"], "--magic"),
    "too few arguments": (lambda folder, composite, mask: [composite, mask], "OUT"),
}


def turn(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


def eps(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").save(path, "EPS")


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def empty(folder: Path, name: str = "empty") -> Path:
    (folder / name).mkdir()
    return folder / name


@pytest.mark.parametrize("make, words", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(tmp_path, pair, weights, capsys, make, words):
    arguments = make(tmp_path, *pair)
    there = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert words in refused(capsys, "harmonize", "--checkpoint", weights, *arguments)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == there


def test_a_refused_write_leaves_nothing(tmp_path, pair, weights, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the system refuses every larger file
    try:
        text = refused(capsys, "harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "out.png" in text and sorted(os.listdir(tmp_path)) == ["composites", "masks"]


# --- the other commands, and the program itself


def test_convert_says_what_it_found(tmp_path, weights, capsys):
    assert command("convert", weights, tmp_path / "half.safetensors", "--dtype", "fp16") == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("resolution 64", "float16", "9 channels", "8/8/8/8", "MB"))
    assert {tensor.dtype for key, tensor in load_file(tmp_path / "half.safetensors").items() if key != "null_text"} == {
        torch.float16
    }


@pytest.mark.parametrize(
    "arguments, words",
    [
        (lambda folder, weights: [folder / "gone", folder / "o.safetensors"], "gone"),
        (lambda folder, weights: [weights, folder / "o.bin"], ".safetensors"),
        (lambda folder, weights: [weights, folder / "o.safetensors", "--dtype", "int4"], "bfloat16"),
        (lambda folder, weights: [weights, weights], "over its source"),
        (lambda folder, weights: [weights], "OUT"),
    ],
)
def test_convert_refuses(tmp_path, weights, capsys, arguments, words):
    assert words in refused(capsys, "convert", *arguments(tmp_path, weights))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "arguments are required: COMMAND"),
        (["paint"], "argument COMMAND: invalid choice: 'paint' (choose from"),
        (["--paint"], "arguments are required: COMMAND"),
        (["harmonise", "--help"], "invalid choice: 'harmonise'"),
    ],
)
def test_unknown_commands(capsys, argv, words):
    text = refused(capsys, *argv)
    assert words in text and f"see {PROGRAM} --help" in text


def test_version_and_help(capsys):
    assert command("--version") == 0
    assert __version__ in capsys.readouterr().out
    assert command("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys, name):
    assert command(name, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: {PROGRAM} {name} ") and COMMANDS[name][1][1:] in text
    parser = _parser([name])._subparsers._group_actions[0].choices[name]
    assert len(parser._actions) > 2
    for action in parser._actions:
        assert action.help and all(name in text for name in action.option_strings or [action.metavar or action.dest])
        explained = " ".join((action.help % {"default": action.default}).split())
        assert explained[:40] in text.replace("- ", "-"), f"{name}: {action.dest} is not explained"


INTERRUPTED = """
import os, signal, sys
from diffharmony_models.__main__ import main

def hook(event, arguments):
    if event == "os.rename" and waiting:  # the result is written, but not yet in its place
        print(os.path.exists(arguments[0]), end=" ")
        os.kill(os.getpid(), waiting.pop())

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, and rightly so
waiting = []
sys.addaudithook(hook)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    waiting.append(number)
    print(main(sys.argv[1:]), os.listdir("out"), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_leaves_nothing_half_done(tmp_path, pair):
    (tmp_path / "out").mkdir()
    Image.new("L", (WIDTH, HEIGHT)).save(pair[1])
    done = python("-c", INTERRUPTED, "harmonize", *pair, "out/out.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 130 [] True", "True 143 [] True", "True 129 [] True"]
    said = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert said == ["interrupted", "terminated", "terminated"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_make_composites_ends_with_its_workers(tmp_path):
    """Ctrl-C reaches the workers, too."""
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    pixels = np.random.default_rng(0).integers(40, 200, (300, 400, 3), dtype=np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    mask[50:250, 100:300] = 255
    for place in range(24):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{place}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{place}.png")
    arguments = ["make-composites", "out", "--photos", "photos", "--masks", "masks", "--workers", "2", "--size", "120"]
    child = subprocess.Popen(
        [sys.executable, "-m", "diffharmony_models", *arguments, "--per-mask", "50"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 100
        while not list(tmp_path.glob("out/*/composite_images/*.jpg")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)
        errors = child.communicate(timeout=100)[1]
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("out/own/composite_images/*.jpg")) and not list(tmp_path.glob("out/**/.*.part"))


def test_main_leaves_the_process_as_it_was(capsys):
    before = list(warnings.filters), signal.getsignal(signal.SIGTERM)
    assert command("--version") == 0
    assert (list(warnings.filters), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError(5, "I/O error"), FileNotFoundError(2, "No such file", "/nowhere/else")]
)
def test_a_fault_of_the_program_keeps_its_traceback(pair, tmp_path, weights, capsys, monkeypatch, error):
    def broken(path):
        raise error

    monkeypatch.setattr(images, "read_mask", broken)
    with pytest.raises(type(error)) as caught:
        command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights)
    assert caught.value is error and said(capsys) == ""


@pytest.mark.slow
def test_a_fault_of_the_program_is_exit_code_1(tmp_path, pair):
    code = (
        "import sys; from diffharmony_models import __main__, images; images.read_mask = None;"
        "sys.exit(__main__.main(sys.argv[1:]))"
    )
    done = python("-c", code, "harmonize", *pair, "out.png", cwd=tmp_path)
    assert done.returncode == 1 and "TypeError: 'NoneType' object is not callable" in done.stderr
    assert "Traceback" in done.stderr and not (tmp_path / "out.png").exists()


def python(*argv, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.mark.slow
def test_the_program_harmonizes_and_says_only_that(tmp_path, pair, weights):
    done = python("-m", "diffharmony_models", "harmonize", *pair, "out.png", "--checkpoint", weights, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("out.png written")
    assert pixels_of(tmp_path / "out.png").shape == (HEIGHT, WIDTH, 3)
    bad = python("-m", "diffharmony_models", "harmonize", pair[0], pair[1], "out.gif", cwd=tmp_path)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_help_loads_nothing_heavy_and_harmonizing_no_pipelines(tmp_path, pair, weights):
    code = (
        "import sys; from diffharmony_models.__main__ import main; main(sys.argv[1:])\n"
        "heavy = ('torch', 'numpy', 'diffusers', 'transformers', 'diffusers.pipelines.stable_diffusion')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert python("-c", code, "--help", cwd=tmp_path).stdout.endswith("\n[]\n")
    loaded = python("-c", code, "harmonize", *pair, "out.png", "--checkpoint", weights, cwd=tmp_path).stdout
    assert "'diffusers'" in loaded and "stable_diffusion" not in loaded


@pytest.mark.slow
def test_colors_alone_import_nothing_heavy(tmp_path):
    """With the bundled weights a picture takes a second, because diffusers is not loaded for it."""
    pictures = ROOT / "workflows" / "pictures"
    arguments = ["harmonize", str(pictures / "astronaut.jpg"), str(pictures / "astronaut_mask.png"), "out.png"]
    code = (
        "import sys; from diffharmony_models.__main__ import main; "
        f"assert main({arguments!r}) == 0; "
        "print([name for name in ('diffusers', 'transformers', 'accelerate') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]" and (tmp_path / "out.png").stat().st_size > 10_000
