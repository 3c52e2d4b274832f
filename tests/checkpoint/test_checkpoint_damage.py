"""Damaged and wrong weights: each is refused in words."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from comparing import BUILD, refused
from safetensors.torch import load_file, save_file
from support import WEIGHTS, lay

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import PARTS, Part
from diffharmony_models.checkpoint.kinds import KINDS


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
    "other widths, UNet": (lambda r: _config(r / "base/unet", block_out_channels=[32]).parent, "[32]", "2 levels"),
    "other widths, VAE": (
        lambda r: _config(r / "base/vae", block_out_channels=[64, 64]).parents[1],
        "VAE",
        "[32] instead of [64]",
    ),
    "other widths, refiner": (
        lambda r: _config(r / "refinement", block_out_channels=[32, 32]),
        "refiner",
        "instead of [32]",
    ),
    "other widths, Harmony-VAE": (lambda r: _config(r / "condition_vae", block_out_channels=[32]), "[32]", "Harmony"),
    "other widths, text": (
        lambda r: _config(r / "base/text_encoder", hidden_size=32),
        "16] instead of [49408, 32]",
    ),
    "other text width": (lambda r: _config(r / "base/unet", cross_attention_dim=768), "16] instead of [32, 768]"),
    "other layers": (lambda r: _config(r / "refinement", layers_per_block=2), "missing", "resnets.1"),
    "another kind's config": (
        lambda r: shutil.copy(r / "base/vae/config.json", r / "refinement") and r / "refinement",
        "describes a VAE",
        "refiner",
    ),
    "four channels": (
        lambda r: _state(r / "base/unet", lambda s: s.update({"conv_in.weight": torch.ones(32, 4, 3, 3)})),
        "conv_in.weight [32, 4, 3, 3] instead of [32, 9, 3, 3]",
    ),
    "four channels, as its config says": (
        lambda r: _config(r / "base/unet", in_channels=4),
        "9-channel inpainting UNet",
        "takes 4 channels",
    ),
    "five channels": (
        lambda r: _config(r / "refinement", in_channels=5),
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
        "1 missing (encoder.conv_in.weight)",
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
    name = KINDS[kind].title
    refused(lambda: BUILD[kind](broken), f"The {name}'s tensors", *words)
    folder = lay(tmp_path / "part", broken)
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
        "refiner's tensors do not fit its config",
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
