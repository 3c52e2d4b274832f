"""`harmonize` with weights that cannot be used."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import refused
from safetensors.torch import save_file

from diffharmony_models import checkpoint


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
    "no refiner": (
        lambda folder, tiny: save_raw(folder / "w.safetensors", replace(tiny, refiner=None)),
        "ending transfer",
    ),
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
    arguments = ["harmonize", *pair, tmp_path / "out.png", "--ending", "paper", "--checkpoint", make(tmp_path, tiny)]
    assert words in refused(capsys, *arguments)
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "evil").exists()
