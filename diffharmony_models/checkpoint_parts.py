"""One part of a checkpoint: its tensors on disk, what kind of network they are, and whether they fit their config.

A part's kind is told by its config's class, its keys and its shapes, never by its name. Pickles are read as plain
tensors only; nothing in them is executed.
"""

import json
import re
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import InputError

PARTS = ("unet", "vae", "refiner", "harmony_vae")
NAMES = {
    "unet": "UNet",
    "vae": "VAE",
    "refiner": "refiner",
    "harmony_vae": "Harmony-VAE",
    "text_encoder": "text encoder",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_CLASSES = {
    "UNet2DConditionModel": "unet",
    "AutoencoderKL": "vae",
    "UNet2DCustom": "refiner",
    "ConditionVAE": "harmony_vae",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder",
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass
class Part:
    """One network. config: the content of a diffusers config.json. state: its tensors, in the dtype they are stored in;
    where they come from a file they are mapped from it, and take memory once they are used."""

    config: dict
    state: dict[str, torch.Tensor]


def load(kind: str, files: list[Path], config: dict | None, where: Path) -> Part:
    """Reads a part's tensors, under today's names, and checks them against its config and for NaN.

    kind: of `PARTS`, or "text_encoder". files: weights, several where they are shards. config: None where there is no
    config.json; what shapes tell then has to do. where: named in errors (ValueError).
    """
    if not files:
        raise InputError(f"{where}: config.json stands there without its weights. Get the whole folder again.")
    state = {}
    for path in files:
        state |= tensors(path)
    actual = kind_of_keys(shapes(state))
    if actual != kind:
        words = f"they are those of a {NAMES[actual]}" if actual else strangers(state)
        raise InputError(f"{where}: config.json describes a {NAMES[kind]}, but of its tensors: {words}.")
    state = {_modern(key, kind): tensor for key, tensor in state.items() if not key.endswith("position_ids")}
    if kind != "unet":
        for key, tensor in state.items():
            if ".attentions." in key and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
                state[key] = tensor.flatten(1)
    if config is None:
        config = _inferred(kind, facts(kind, shapes(state), where), where)
    part = Part(config, state)
    check(kind, part, where)
    check_finite(part, where)
    return part


def class_of(config: dict) -> str | None:
    """The class that a config.json of diffusers or transformers names."""
    names = [config.get("_class_name"), *(config.get("architectures") or [])]
    return next((name for name in names if isinstance(name, str)), None)


def kind_of_config(config: dict) -> str | None:
    """The kind of part that a config describes; None for another network's, or where it does not say."""
    return "text_encoder" if config.get("model_type") == "clip_text_model" else _CLASSES.get(class_of(config))


def kind_of_keys(shapes: dict) -> str | None:
    """The kind of part that has such tensors; None for what is no part."""
    if any(key.startswith("conditional_encoder.") for key in shapes):
        return "harmony_vae"
    if any(key.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for key in shapes):
        return "vae"
    if any(key.removeprefix("text_model.") == "embeddings.token_embedding.weight" for key in shapes):
        return "text_encoder"
    if any(key.startswith(("down_blocks.", "up_blocks.")) for key in shapes):
        return "unet" if any(key.startswith("time_embedding.") or ".attn2." in key for key in shapes) else "refiner"
    return None


def strangers(shapes: dict) -> str:
    """Words for tensors that are those of no part."""
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.", "encoder.down.")) for key in shapes):
        return "they have the names of the original Stable Diffusion files; convert them to a diffusers folder first"
    if any(key.startswith(("unet.", "refiner.")) for key in shapes):
        return "they look like a one-file checkpoint's, but the metadata is lost; convert it anew"
    return f"those of no part known here ({', '.join(list(shapes)[:3]) or 'none at all'})"


def check(kind: str, part: Part, where) -> None:
    """ValueError unless the part is one that we can use: its channels, its config against its shapes, its dtype."""
    found = facts(kind, shapes(part.state), where)
    if kind == "unet" and found["in_channels"] != 9:
        raise InputError(
            f"{where}: a 9-channel inpainting UNet is expected (noisy latent 4, mask 1, composite latent 4), this one "
            f"takes {found['in_channels']} channels. Use Stable Diffusion inpainting weights or DiffHarmony's."
        )
    if kind == "refiner" and found["in_channels"] not in (3, 4, 7):
        raise InputError(f"{where}: a refiner takes 7, 4 or 3 channels, this one takes {found['in_channels']}.")
    for key, value in found.items():
        said = part.config.get(key, value)
        said = list(said) if isinstance(said, tuple) else said
        if isinstance(said, list) and not isinstance(value, list):
            continue  # one value a level; the build compares all shapes
        if said != value:
            raise InputError(
                f"{where}: the {NAMES[kind]}'s config says {key} {said}, its weights have {value}. "
                "Use the config.json that belongs to these weights."
            )
    for key, tensor in part.state.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(f"{where}: {key} is stored as {tensor.dtype}; expected plain fp32, fp16 or bf16 weights.")


def check_finite(part: Part, where) -> None:
    """ValueError where a weight is NaN or infinite."""
    for key, tensor in part.state.items():
        if not is_finite(tensor):
            raise InputError(f"{where}: {key} holds NaN or infinity. Get or train these weights anew.")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are; in one pass and without memory, unlike `isfinite().all()`."""
    return tensor.numel() == 0 or all(torch.isfinite(limit) for limit in tensor.detach().aminmax())


def facts(kind: str, shapes: dict[str, tuple], where) -> dict:
    """What the shapes say, under the config's names. ValueError where tensors for that are missing."""

    def count(prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})

    def size(key: str, axis: int) -> int:
        if len(shapes.get(key, ())) <= axis:
            raise InputError(f"{where}: the {NAMES[kind]} is not whole, {key} is missing. Get the weights anew.")
        return shapes[key][axis]

    if kind == "text_encoder":
        return {
            "vocab_size": size("embeddings.token_embedding.weight", 0),
            "hidden_size": size("embeddings.token_embedding.weight", 1),
            "max_position_embeddings": size("embeddings.position_embedding.weight", 0),
            "num_hidden_layers": count("encoder.layers."),
            "intermediate_size": size("encoder.layers.0.mlp.fc1.weight", 0),
        }
    down, up = ("", "") if kind in ("unet", "refiner") else ("encoder.", "decoder.")
    levels = range(count(f"{down}down_blocks."))
    found = {
        "in_channels": size(f"{down}conv_in.weight", 1),
        "out_channels": size(f"{up}conv_out.weight", 0),
        "block_out_channels": [size(f"{down}down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels],
        "layers_per_block": count(f"{down}down_blocks.0.resnets."),
    }
    if down:
        found["latent_channels"] = size("decoder.conv_in.weight", 1)
    if kind == "harmony_vae":
        found["additional_in_channels"] = size("conditional_encoder.add_conv_in.weight", 1)
    if kind == "unet":
        to_k = (key for key in shapes if key.endswith(".attn2.to_k.weight"))
        found["cross_attention_dim"] = size(next(to_k, "attn2.to_k.weight"), 1)
    return found


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def peek(path: Path) -> tuple[dict, dict[str, tuple]]:
    """Metadata and shapes of a weight file."""
    if path.suffix != ".safetensors":
        return {}, shapes(tensors(path))
    with opened(path) as file:
        return file.metadata() or {}, {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a weight file, mapped from it where its format allows. ValueError for what is none."""
    if path.suffix == ".safetensors":
        with opened(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of the pickle; the error below says what matters
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: cannot be read as plain tensors: it is damaged, or a pickle that wants to run code (nothing "
            "of it was executed). Get the .safetensors version, or the file again."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
        raise InputError(f"{path}: not a file of named tensors. Give a part's weights, as diffusers saves them.")
    return dict(state)


@contextmanager
def opened(path: Path):
    """A safetensors file; its tensors are mapped, not copied."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({line(error)}). Get it again.") from error


def parse_json(text: bytes | str, where) -> dict:
    """A JSON object. where: named in the ValueError for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: damaged, not JSON ({line(error)}). Get it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a JSON object, found a {type(content).__name__}. Get it again.")
    return content


def line(error: Exception) -> str:
    """An error's first line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _modern(key: str, kind: str) -> str:
    """Today's name of a tensor: earlier diffusers had others for attention in VAEs (`sd-vae-ft-mse`) and refiners."""
    if kind == "text_encoder":
        return key.removeprefix("text_model.")
    if kind == "unet":
        return key
    old = re.search(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", key) if ".attentions." in key else None
    return key[: old.start()] + _OLD_ATTENTION[old[1]] + key[old.end() :] if old else key


def _inferred(kind: str, found: dict, where) -> dict:
    """The config of weights that came without one, as far as shapes tell it; what they don't tell is as published."""
    widths = found.get("block_out_channels", [])
    known = kind != "text_encoder" and not any(width % 32 for width in widths)
    if kind == "unet":
        known = widths == [320, 640, 1280, 1280] and found["cross_attention_dim"] == 768
    if not known:
        raise InputError(
            f"{where}: there is no config.json, and shapes alone do not tell all of this {NAMES[kind]}. Put it beside."
        )
    if kind == "unet":
        rest = {
            "attention_head_dim": 8,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        }
    else:
        down, up = ("DownBlock2D", "UpBlock2D") if kind == "refiner" else ("DownEncoderBlock2D", "UpDecoderBlock2D")
        rest = {"down_block_types": [down] * len(widths), "up_block_types": [up] * len(widths)}
        rest |= {"input_residual": True, "downsample_padding": 0} if kind == "refiner" else {"scaling_factor": 0.18215}
    name = next(name for name, each in _CLASSES.items() if each == kind)
    return {"_class_name": name, **found, **rest, "norm_num_groups": 32}
