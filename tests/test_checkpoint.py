"""Weights: what is read from which folder or file, what is refused, and that every part survives being stored."""

import errno
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import PARTS, Checkpoint, Part, configs
from diffharmony_models.checkpoint.shapes import expected
from diffharmony_models.errors import InputError
from diffharmony_models.networks.color_regressor import ColorRegressor
from diffharmony_models.networks.harmony_vae import HarmonyVAE
from diffharmony_models.networks.refiner import Refiner

WIDTHS = {"golden": ((32, 64, 64, 64), (32, 32, 64, 64)), "others": ((32, 96), (32, 64))}
# What the published layout has folders for.
PUBLISHED = tuple(kind for kind in PARTS if kind != "color_regressor")
BUILD = {kind: getattr(checkpoints, f"build_{kind}") for kind in PARTS}
SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def networks(size: str) -> dict[str, torch.nn.Module]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    widths, image_widths = WIDTHS[size]
    levels = len(widths)
    blocks = {"block_out_channels": image_widths, "layers_per_block": 1}
    unet = UNet2DConditionModel(
        in_channels=9,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
    )
    vae = AutoencoderKL(
        **blocks,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    harmony_vae = HarmonyVAE.from_vae(vae)
    for name, parameter in harmony_vae.named_parameters():
        if "skip" in name:
            torch.nn.init.normal_(parameter)
    colors = ColorRegressor(size=64, width=16)
    torch.nn.init.normal_(colors.curve.weight, std=0.05)
    return {
        "unet": unet,
        "vae": vae,
        "refiner": Refiner(**blocks),
        "harmony_vae": harmony_vae,
        "color_regressor": colors,
    }


def run(kind: str, module: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        if kind == "unet":
            return module(noise(1, 9, 8, 8), 500, noise(1, 3, 16)).sample
        if kind == "vae":
            return module(noise(1, 3, 32, 32)).sample
        if kind == "refiner":
            return module(noise(1, 7, 32, 32))
        if kind == "color_regressor":
            return module(noise(1, 3, 64, 64), torch.ones(1, 1, 64, 64)).curve
        image, mask = noise(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
        condition = module.encode_condition(image, mask)
        return module.decode(torch.zeros_like(condition.posterior.mean), condition)


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """A whole checkpoint of other widths than the published ones. Tests must not change it."""
    torch.manual_seed(0)
    parts = {kind: checkpoints.part_from(module) for kind, module in networks("others").items()}
    return Checkpoint("tiny", **parts, null_text=torch.randn(77, 16), prediction_type="v_prediction", resolution=256)


@pytest.fixture(scope="session")
def text_encoder() -> Part:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = CLIPTextModel(config)
    content = json.loads(config.to_json_string()) | {"architectures": ["CLIPTextModel"]}
    state = {"text_model." + key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    return Part(content, state | {"text_model.embeddings.position_ids": torch.arange(77)[None]})


def save(folder: Path, part: Part, name: str = WEIGHTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(part.config))
    state = {key: value.contiguous() for key, value in part.state.items()}
    (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)
    return folder


@pytest.fixture(scope="session")
def _published(tiny, text_encoder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("published") / "weights"
    for pipeline, unet in (("base", "unet"), ("inverse", "weights-102800")):
        folder = root / pipeline
        save(folder / unet, tiny.unet)
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionInpaintPipeline"}')
        save(folder / "vae", tiny.vae)
        save(folder / "text_encoder", text_encoder, "pytorch_model.bin")
        for name in ("tokenizer", "feature_extractor", "safety_checker", "scheduler"):
            (folder / name).mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text('{"timestep_spacing": "leading"}')
        (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
        (folder / "safety_checker" / "config.json").write_text('{"architectures": ["StableDiffusionSafetyChecker"]}')
        torch.save({"concept_embeds": torch.zeros(3)}, folder / "safety_checker" / "pytorch_model.bin")
    with torch.no_grad():  # the two must be told apart
        inverse = {key: value + 1 for key, value in tiny.unet.state.items()}
    save(root / "inverse" / "weights-102800", Part(tiny.unet.config, inverse))
    save(root / "refinement", tiny.refiner)
    save(root / "condition_vae", tiny.harmony_vae)
    return root


@pytest.fixture
def root(_published, tmp_path) -> Path:
    """The unpacked zip, at tiny width."""
    return Path(shutil.copytree(_published, tmp_path / "downloads" / "weights"))


def same(part: Part, other: Part) -> bool:
    a, b = part.state, other.state
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def names(checkpoint: Checkpoint) -> set[str]:
    return {name for name in (*PARTS, "null_text") if getattr(checkpoint, name) is not None}


def refused(action, *words: str) -> None:
    """The action must end in a ValueError of one line that has all the words."""
    with pytest.raises(ValueError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# Storing.


@pytest.mark.parametrize("size", WIDTHS)
def test_parts_survive(size, tmp_path):
    modules = {kind: module.eval() for kind, module in networks(size).items()}
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
        loaded = checkpoints.read(save(tmp_path / name, tiny.unet, name)).unet
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


WRITER = """
import sys, time
from diffharmony_models import checkpoint
whole, finite = checkpoint.read(sys.argv[1]), checkpoint.parts_of.is_finite
def slow(tensor):
    print("writing", flush=True)
    sys.stdin.readline()
    return finite(tensor)
whole.null_text = whole.vae = whole.refiner = whole.harmony_vae = None
checked = checkpoint.parts_of.checked
def ready(*arguments):
    checkpoint.parts_of.is_finite = slow
    return checked(*arguments)
checkpoint.parts_of.checked = ready
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
            patch.setattr(checkpoints.parts_of, "is_finite", interrupted)
            checkpoints.write(tiny, tmp_path / "out.safetensors")
        assert os.listdir(tmp_path) == ["out.safetensors"]
        assert names(checkpoints.read(tmp_path / "out.safetensors")) == {"vae"}


def test_shapes_are_those_of_the_networks():
    """What a config asks for is told without building it: here it is compared with what is built."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    three = {"block_out_channels": (32, 64, 96), "attention_head_dim": 4, "cross_attention_dim": 24}
    mixed = {
        "layers_per_block": [1, 2, 3],
        "transformer_layers_per_block": [1, 2, 3],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    }
    one = {"block_out_channels": (32,), "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    four = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        built = [
            ("unet", UNet2DConditionModel(in_channels=9, cross_attention_dim=768)),
            (
                "unet",
                UNet2DConditionModel(in_channels=9, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
            ),
            ("unet", UNet2DConditionModel(in_channels=9, **three, **mixed)),
            ("unet", UNet2DConditionModel(in_channels=9, **one)),
            ("vae", AutoencoderKL(block_out_channels=(32, 64, 64, 96), layers_per_block=2, **four)),
            ("vae", AutoencoderKL(block_out_channels=(32, 64, 64, 96), mid_block_add_attention=False, **four)),
            ("text_encoder", CLIPTextModel(CLIPTextConfig(num_hidden_layers=3, num_attention_heads=8))),
        ]
    for kind, network in built:
        settings = network.config.to_json_string() if kind == "text_encoder" else network.to_json_string()
        config = configs.clean(kind, json.loads(settings))
        configs.check_together(kind, config)
        state = {key.removeprefix("text_model."): tuple(value.shape) for key, value in network.state_dict().items()}
        assert expected(kind, config) == state


def test_building_costs_no_memory_and_no_random_numbers(tiny):
    state = torch.get_rng_state()
    for kind, build in BUILD.items():
        part = getattr(tiny, kind)
        module = build(part)
        for key, value in module.state_dict().items():
            assert value.data_ptr() == part.state[key].data_ptr()
        assert not any(buffer.is_meta for buffer in module.buffers())
        assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_mapped_weights_can_be_changed_without_touching_the_file(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    checkpoints.write(tiny, path)
    content = path.read_bytes()
    module = checkpoints.build_refiner(checkpoints.read(path, parts=("refiner",)).refiner)
    with torch.no_grad():
        module.conv_in.weight.zero_()
    assert path.read_bytes() == content
    folder = save(tmp_path / "part", tiny.refiner, "diffusion_pytorch_model.bin")
    content = (folder / "diffusion_pytorch_model.bin").read_bytes()
    module = checkpoints.build_refiner(checkpoints.read(folder).refiner)
    with torch.no_grad():
        module.conv_in.weight.zero_()
    assert (folder / "diffusion_pytorch_model.bin").read_bytes() == content


@pytest.mark.slow
def test_nothing_heavy_is_imported():
    code = (
        "import sys, diffharmony_models.checkpoint; "
        "sys.exit(', '.join({'diffusers', 'transformers', 'accelerate'} & set(sys.modules)) or None)"
    )
    package = Path(checkpoints.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


# Folders.

LEVELS = {  # what is pointed at, and what must come of it
    ".": {*PUBLISHED, "null_text"},
    "..": {*PUBLISHED, "null_text"},
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
        save(folder / name, getattr(tiny, kind))
    save(folder / "text_encoder", text_encoder, "model.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    loaded = checkpoints.read(folder)
    assert names(loaded) == {*PUBLISHED, "null_text"} and loaded.prediction_type == "v_prediction"
    assert checkpoints.read(folder / "unet").prediction_type == "v_prediction"


def test_loose_files_without_configs(tiny, tmp_path):
    for kind in ("vae", "refiner", "harmony_vae"):
        save_file(getattr(tiny, kind).state, tmp_path / f"{kind[::-1]}.safetensors")
    loaded = checkpoints.read(tmp_path)
    assert names(loaded) == {"vae", "refiner", "harmony_vae"}
    for kind in names(loaded):
        built = BUILD[kind](getattr(loaded, kind))
        assert torch.equal(run(kind, built), run(kind, BUILD[kind](getattr(tiny, kind)))), kind
    save_file(tiny.unet.state, tmp_path / "unet.safetensors")
    refused(lambda: checkpoints.read(tmp_path / "unet.safetensors"), "config.json", "UNet")


def test_one_file_checkpoints_in_a_folder(tiny, tmp_path):
    checkpoints.write(Checkpoint("a", refiner=tiny.refiner), tmp_path / "a.safetensors")
    assert names(checkpoints.read(tmp_path)) == {"refiner"}
    checkpoints.write(Checkpoint("b", vae=tiny.vae), tmp_path / "b.safetensors")
    refused(lambda: checkpoints.read(tmp_path), "a.safetensors", "b.safetensors", "Point at one")


def test_what_lies_beside_is_left_where_there_is_doubt(root, caplog):
    caplog.set_level(logging.WARNING)
    shutil.copytree(root / "refinement", root / "refinement large")
    loaded = checkpoints.read(root / "base")
    assert names(loaded) == {"unet", "vae", "harmony_vae", "null_text"} and "refinement large" in caplog.text
    refused(lambda: checkpoints.read(root), "refinement large", "more than one refiner")
    shutil.rmtree(root / "refinement large")
    shutil.copytree(root / "base", root / "another")
    assert names(checkpoints.read(root / "base")) == {"unet", "vae", "null_text"}
    shutil.copytree(root / "refinement", root / "base" / "mine")  # inside the pipeline: no doubt
    assert names(checkpoints.read(root / "base")) == {"unet", "vae", "refiner", "null_text"}


@pytest.mark.parametrize("where", ["inverse", "inverse/weights-102800", f"inverse/weights-102800/{WEIGHTS}"])
def test_inverse_model_is_refused(where, root):
    refused(lambda: checkpoints.read(root / where), "inverse", "Point at")


def test_inverse_model_is_left_out(root, caplog):
    shutil.rmtree(root / "base")
    assert names(checkpoints.read(root)) == {"refiner", "harmony_vae"}
    assert "inverse" in caplog.text


@pytest.mark.parametrize("copy", ["another", "inverse/unet", "lone"])
def test_two_unets_are_asked_about(copy, root):
    shutil.copytree(root / ("base" if copy == "another" else "inverse/weights-102800"), root / copy)
    other = root / copy / "unet" if copy == "another" else root / copy
    refused(lambda: checkpoints.read(root), str(root / "base" / "unet"), str(other), "Point at one")
    assert names(checkpoints.read(other)) == {"unet"}
    assert names(checkpoints.read(root / "base")) >= {"unet", "vae", "null_text"}


def test_a_text_to_image_pipeline_beside_is_no_rival(root, tiny):
    conv = tiny.unet.state["conv_in.weight"][:, :4].contiguous()
    part = Part(tiny.unet.config | {"in_channels": 4}, tiny.unet.state | {"conv_in.weight": conv})
    shutil.copytree(root / "base", root / "another")
    save(root / "another" / "unet", part)
    assert same(checkpoints.read(root).unet, tiny.unet)
    refused(lambda: checkpoints.read(root / "another"), "9-channel inpainting UNet", "takes 4 channels")


def test_only_some_parts(root):
    assert names(checkpoints.read(root, parts=("refiner", "vae"))) == {"refiner", "vae"}
    refused(lambda: checkpoints.read(root, parts=("decoder",)), "decoder", "harmony_vae")


# Files of a part.


def test_null_text_of_the_published_text_encoder(golden_dir):
    expected = load_file(golden_dir / "golden.safetensors")["null_text"][0]
    loaded = checkpoints.read(golden_dir)
    assert names(loaded) == {*PUBLISHED, "null_text"} and loaded.null_text.dtype == torch.float32
    assert (loaded.null_text - expected).abs().max() <= 1e-5
    for kind in PUBLISHED:
        assert same(checkpoints.part_from(BUILD[kind](getattr(loaded, kind))), getattr(loaded, kind))


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["diffusion_pytorch_model.fp16.safetensors"], 0),
        (["diffusion_pytorch_model.fp16.safetensors", WEIGHTS], 1),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.fp16.safetensors"], 1),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin"], 1),
        (["diffusion_pytorch_model.bin", WEIGHTS], 1),
        (["another.safetensors", "diffusion_pytorch_model.bin"], 1),
        (["diffusion_pytorch_model.non_ema.bin"], 0),
    ],
)
def test_which_file_is_taken(files, taken, tiny, tmp_path):
    for number, name in enumerate(files):
        state = {key: torch.full_like(value, number) for key, value in tiny.refiner.state.items()}
        save(tmp_path / "part", Part(tiny.refiner.config, state), name)
    assert checkpoints.read(tmp_path / "part").refiner.state["conv_in.bias"][0] == taken


@pytest.mark.parametrize("index", [f"{WEIGHTS}.index.json", "diffusion_pytorch_model.safetensors.index.fp16.json"])
def test_shards(index, tiny, tmp_path):
    folder = save(tmp_path / "vae", tiny.vae)
    (folder / WEIGHTS).unlink()
    keys = list(tiny.vae.state)
    weight_map = {key: SHARD if number % 2 else SHARD.replace("1-of", "2-of") for number, key in enumerate(keys)}
    for name in set(weight_map.values()):
        save_file({key: tiny.vae.state[key] for key in keys if weight_map[key] == name}, folder / name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same(checkpoints.read(folder).vae, tiny.vae)
    for elsewhere in (f"../vae/{SHARD}", str(folder / SHARD), f"./{SHARD}"):  # all of them there
        assert (folder / elsewhere).is_file()
        content = {"weight_map": weight_map | {keys[0]: elsewhere}}
        (folder / index).write_text(json.dumps(content))
        refused(lambda: checkpoints.read(folder), index, "no weight files that lie beside it")
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    (folder / SHARD).unlink()
    refused(lambda: checkpoints.read(folder), index, "not all files")


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("kind", ["vae", "harmony_vae", "refiner"])
def test_old_attention_names(kind, convolutions, tiny, tmp_path):
    part, old = getattr(tiny, kind), {}
    for key, value in part.state.items():
        if ".attentions." in key:
            for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                key = key.replace(f".{new}.", f".{name}.")
            if convolutions and value.dim() == 2:
                value = value[:, :, None, None]
        old[key] = value
    assert any(key.endswith("proj_attn.weight") for key in old)
    loaded = getattr(checkpoints.read(save(tmp_path / "old", Part(part.config, old))), kind)
    assert same(loaded, part)
    assert torch.equal(run(kind, BUILD[kind](loaded)), run(kind, BUILD[kind](part)))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights(zipped, tiny, tmp_path):
    folder = save(tmp_path / "part", tiny.refiner, "diffusion_pytorch_model.bin")
    path = folder / "diffusion_pytorch_model.bin"
    torch.save({"state_dict": dict(tiny.refiner.state)}, path, _use_new_zipfile_serialization=zipped)
    assert same(checkpoints.read(folder).refiner, tiny.refiner)
    assert same(checkpoints.read(path).refiner, tiny.refiner)


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_pickle_that_wants_to_run_code(zipped, root, tmp_path, recwarn):
    marker, path = tmp_path / "executed", root / "base" / "text_encoder" / "pytorch_model.bin"
    content = {"text_model.embeddings.token_embedding.weight": Payload(marker)}
    if zipped is None:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for where in (root, root / "base", path.parent, path):
        refused(lambda where=where: checkpoints.read(where), str(path), "run code", "nothing of it was executed")
    assert not marker.exists() and not recwarn.list
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # it would have


# Bad input: what is done to the published folder, where one then points, and what the message must say.


def _config(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def _state(folder: Path, change) -> Path:
    state = load_file(folder / WEIGHTS)
    state = {key: value.clone() for key, value in state.items()}
    change(state)
    save_file(state, folder / WEIGHTS)
    return folder


def _cut(path: Path, size: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * size)])
    return path


def _put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def _away(path: Path) -> Path:
    path.unlink()
    return path.parent


def _as(value: float):
    return lambda state: state["conv_in.bias"].__setitem__(0, value)


BAD = {
    "nothing there": (lambda r: r / "nowhere", "no such file"),
    "an empty folder": (lambda r: r / "base" / "tokenizer", "nothing of DiffHarmony"),
    "another network's folder": (lambda r: r / "base" / "safety_checker", "nothing of DiffHarmony"),
    "another network's file": (lambda r: r / "base/safety_checker/pytorch_model.bin", "not a part", "concept_embeds"),
    "a config instead of weights": (lambda r: r / "base" / "model_index.json", "Point at its folder"),
    "a picture": (lambda r: _put(r / "x.png", b"\x89PNG\r\n\x1a\n" + bytes(99)), "x.png", "plain tensors"),
    "no tensors": (lambda r: _put(r / "x.bin", pickle.dumps([1, 2])), "x.bin"),
    "empty .safetensors": (lambda r: _put(r / "x.safetensors", b""), "x.safetensors", "damaged"),
    "garbage .safetensors": (lambda r: _put(r / "x.safetensors", b"\xff" * 999), "x.safetensors", "damaged"),
    "truncated .safetensors": (lambda r: _cut(r / "refinement" / WEIGHTS, 0.7).parents[1] / "base", WEIGHTS, "damaged"),
    "truncated header": (lambda r: _cut(r / "refinement" / WEIGHTS, 1e-3), WEIGHTS, "damaged"),
    "truncated .bin": (lambda r: _cut(r / "base/text_encoder/pytorch_model.bin", 0.7), "pytorch_model.bin", "damaged"),
    "original layout": (
        lambda r: save_file({"model.diffusion_model.a": torch.ones(1)}, r / "sd.safetensors") or r / "sd.safetensors",
        "original Stable Diffusion",
    ),
    "config that is no JSON": (lambda r: _put(r / "refinement/config.json", b"{").parent, "config.json", "not JSON"),
    "config that is a list": (lambda r: _put(r / "refinement" / "config.json", b"[]").parent, "JSON object"),
    "config without weights": (lambda r: _away(r / "base/unet" / WEIGHTS).parent, "unet", "without its weights"),
    "other widths, UNet": (lambda r: _config(r / "base/unet", block_out_channels=[32]).parent, "[32]", "[32, 96]"),
    "other widths, VAE": (lambda r: _config(r / "base/vae", block_out_channels=[64, 64]).parents[1], "[64, 64]", "VAE"),
    "other widths, refiner": (lambda r: _config(r / "refinement", block_out_channels=[32, 32]), "[32, 32]", "refiner"),
    "other widths, Harmony-VAE": (lambda r: _config(r / "condition_vae", block_out_channels=[32]), "[32]", "Harmony"),
    "other widths, text": (lambda r: _config(r / "base/text_encoder", hidden_size=32), "hidden_size 32", "16"),
    "other text width": (lambda r: _config(r / "base/unet", cross_attention_dim=768), "cross_attention_dim 768", "16"),
    "other layers": (lambda r: _config(r / "refinement", layers_per_block=2), "layers_per_block 2"),
    "another kind's config": (
        lambda r: shutil.copy(r / "base/vae/config.json", r / "refinement") and r / "refinement",
        "describes a VAE",
        "refiner",
    ),
    "four channels": (
        lambda r: _state(r / "base/unet", lambda s: s.update({"conv_in.weight": torch.ones(32, 4, 3, 3)})),
        "9-channel inpainting UNet",
        "takes 4 channels",
    ),
    "five channels": (
        lambda r: _state(r / "refinement", lambda s: s.update({"conv_in.weight": torch.ones(32, 5, 3, 3)})),
        "7, 4 or 3 channels",
    ),
    "NaN": (lambda r: _state(r / "base/unet", _as(float("nan"))).parents[1], "conv_in.bias", "NaN"),
    "infinity": (lambda r: _state(r / "refinement", _as(float("inf"))), "conv_in.bias", "NaN or infinity"),
    "integers": (
        lambda r: _state(r / "refinement", lambda s: s.update({"conv_in.bias": torch.ones(32, dtype=torch.int8)})),
        "conv_in.bias",
        "int8",
    ),
    "no first layer": (
        lambda r: _state(r / "base/vae", lambda s: s.pop("encoder.conv_in.weight")),
        "encoder.conv_in.weight is missing",
    ),
    "prediction type": (
        lambda r: _put(r / "base/scheduler/scheduler_config.json", b'{"prediction_type": "flow"}').parents[1],
        '"flow"',
        "epsilon",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, root):
    damage, *words = BAD[case]
    path = damage(root)
    refused(lambda: checkpoints.read(path), *words)


WRONG = {  # what is done to a part's state and its last layer's name, and what the message must say
    "missing": (lambda s, last: s.pop(f"{last}.weight"), "1 missing (", "{last}.weight)"),
    "left over": (lambda s, last: s.update({"strange.weight": torch.ones(1)}), "1 left over (strange.weight)"),
    "of another shape": (
        lambda s, last: s.update({f"{last}.bias": torch.ones(7)}),
        "{last}.bias [7] instead of [",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("kind", PARTS)
def test_strict_loading(kind, case, tiny, tmp_path):
    change, *words = WRONG[case]
    part = getattr(tiny, kind)
    broken = Part(part.config, dict(part.state))
    last = {"vae": "decoder.conv_norm_out", "harmony_vae": "decoder.conv_norm_out", "color_regressor": "field"}
    last = last.get(kind, "conv_norm_out")
    change(broken.state, last)
    words = [word.replace("{last}", last) for word in words]
    name = configs.NAMES[kind]
    refused(lambda: BUILD[kind](broken), f"The {name}'s tensors", *words)
    folder = save(tmp_path / "part", broken)
    refused(lambda: checkpoints.convert(folder, tmp_path / "out.safetensors"), *words)
    assert not (tmp_path / "out.safetensors").exists()


def test_config_that_cannot_be_built(tiny):
    unet, refiner = tiny.unet.config | {"down_block_types": ["A", "B"]}, tiny.refiner.config | {"act_fn": "gelu"}
    refused(lambda: checkpoints.build_unet(Part(unet, tiny.unet.state)), "UNet's config")
    refused(lambda: checkpoints.build_refiner(Part(refiner, tiny.refiner.state)), "refiner's config", "gelu")


ONE_FILE = {  # changes of a one-file checkpoint's tensors and metadata, and what the message must say
    "no config": (lambda t, m: m.pop("refiner"), "refiner has tensors but no config"),
    "no tensors": (
        lambda t, m: [t.pop(key) for key in list(t) if key.startswith("vae.")],
        "VAE has config but no tensors",
    ),
    "config no JSON": (lambda t, m: m.update(unet="{"), "metadata unet", "not JSON"),
    "other widths": (
        lambda t, m: m.update(refiner=json.dumps(json.loads(m["refiner"]) | {"block_out_channels": [32, 32]})),
        "[32, 32]",
    ),
    "strange tensors": (lambda t, m: t.update({"clip.weight": torch.ones(1)}), "clip.weight"),
    "resolution": (lambda t, m: m.update(resolution="big"), '"big"'),
    "prediction type": (lambda t, m: m.update(prediction_type="flow"), '"flow"'),
    "NaN": (lambda t, m: t.update({"vae.quant_conv.bias": torch.full((8,), torch.nan)}), "quant_conv.bias", "NaN"),
    "null text of another width": (lambda t, m: t.update(null_text=torch.ones(77, 8)), "text width is 16", "8"),
    "null text with NaN": (lambda t, m: t.update(null_text=torch.full((77, 16), torch.nan)), "null text"),
    "null text of another shape": (lambda t, m: t.update(null_text=torch.ones(1, 77, 16)), "[tokens, width]"),
    "metadata lost": (lambda t, m: m.clear(), "metadata is lost"),
}


@pytest.mark.parametrize("case", ONE_FILE)
def test_bad_one_file_checkpoint(case, tiny, tmp_path):
    change, *words = ONE_FILE[case]
    tensors = {f"{kind}.{key}": value for kind in PARTS for key, value in getattr(tiny, kind).state.items()}
    tensors["null_text"] = tiny.null_text
    metadata = {kind: json.dumps(getattr(tiny, kind).config) for kind in PARTS} | {"format": "diffharmony"}
    change(tensors, metadata)
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "bad.safetensors", metadata)
    refused(lambda: checkpoints.read(tmp_path / "bad.safetensors"), "bad", *words)


# Writing what or where one cannot.


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
