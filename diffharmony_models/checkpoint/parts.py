"""One part of a checkpoint: its tensors on disk, what kind of network they are, and whether they fit their config.

A part's kind is told by its config's class, its keys and its shapes, never by its name. Pickles are read as plain
tensors only; nothing in them is executed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..networks.color_regressor import HEAD_WIDTH
from . import configs
from . import shapes as checkpoint_shapes
from .configs import NAMES, shown
from .files import aligned, tensors

PARTS = ("unet", "vae", "refiner", "harmony_vae", "color_regressor")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_CLASSES = {
    "UNet2DConditionModel": "unet",
    "AutoencoderKL": "vae",
    "UNet2DCustom": "refiner",
    "ConditionVAE": "harmony_vae",
    "ColorRegressor": "color_regressor",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder",
}
_SPARE = ("text_encoder", "text_projection.weight")  # saved with it, of no use here
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
    state: dict[str, torch.Tensor] = {}
    for path in files:
        state |= tensors(path)
    actual = kind_of_keys(shapes(state))
    if actual != kind:
        words = f"they are those of a {NAMES[actual]}" if actual else strangers(shapes(state))
        raise InputError(f"{where}: config.json describes a {NAMES[kind]}, but of its tensors: {words}.")
    state = {_modern(key, kind): tensor for key, tensor in state.items() if not key.endswith("position_ids")}
    if kind != "unet":
        for key, tensor in state.items():
            if ".attentions." in key and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
                state[key] = tensor.flatten(1)
    if config is None:
        config = _inferred(kind, facts(kind, shapes(state), where), where)
    part = checked(kind, Part(config, state), where)
    check_finite(part, where)
    return part


def settled(part: Part) -> Part:
    """The part with each tensor where kernels treat it as torch's own: a copy of those that are mapped elsewhere."""
    return Part(part.config, {key: aligned(tensor) for key, tensor in part.state.items()})


def class_of(config: dict) -> str | None:
    """The class that a config.json of diffusers or transformers names."""
    architectures = config.get("architectures")
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    return next((name for name in names if isinstance(name, str)), None)


def kind_of_config(config: dict) -> str | None:
    """The kind of part that a config describes; None for another network's, or where it does not say."""
    return "text_encoder" if config.get("model_type") == "clip_text_model" else _CLASSES.get(class_of(config) or "")


def kind_of_keys(shapes: dict) -> str | None:
    """The kind of part that has such tensors; None for what is no part."""
    if any(key.startswith("conditional_encoder.") for key in shapes):
        return "harmony_vae"
    if any(key.startswith("backbone.stem.") for key in shapes):
        return "color_regressor"
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
        return "they look like a one-file checkpoint's, but the metadata is lost; convert it again"
    return f"those of no part known here ({', '.join(list(shapes)[:3]) or 'none at all'})"


def checked(kind: str, part: Part, where: object = None) -> Part:
    """The part with a clean config, and known to be whole: the tensors that the config asks for and no others, of its
    shapes, in floating point. No memory is taken for a network to find that out.

    where: named in the InputError for a part that is not.
    """
    name, have = configs.prefix(where, kind), shapes(part.state)
    found = facts(kind, have, where)
    config = configs.clean(kind, part.config, where, found)
    if kind == "unet" and found["in_channels"] != 9:
        raise InputError(
            f"{name} takes {found['in_channels']} channels; a 9-channel inpainting UNet is expected (noisy latent 4, "
            "mask 1, composite latent 4). Use Stable Diffusion inpainting weights or DiffHarmony's."
        )
    if kind == "refiner" and found["in_channels"] not in (3, 4, 7):
        raise InputError(
            f"{name} takes {found['in_channels']} channels; expected 7, 4 or 3 channels. Get another refiner."
        )
    for key, value in found.items():
        said = config[key]
        if isinstance(said, list) and not isinstance(value, list):
            continue  # one value a level; the shapes tell
        if said != value:
            raise InputError(
                f"{name}'s config says {key} {said}, its weights have {shown(value)}. "
                "Use the config.json that belongs to these weights."
            )
    configs.check_together(kind, config, where)
    for key, tensor in part.state.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(
                f"{name}'s {key} is stored as {tensor.dtype}; expected plain fp32, fp16 or bf16 weights. Get those."
            )
    want = checkpoint_shapes.expected(kind, config) or shapes(skeleton(kind, config).state_dict())
    _check_shapes(kind, want, have, where)
    return Part(config, part.state)


def skeleton(kind: str, config: dict) -> torch.nn.Module:
    """The network that a clean config describes, without memory of its own."""
    if kind == "unet":
        from diffusers import UNet2DConditionModel as Network
    elif kind == "vae":
        from diffusers import AutoencoderKL as Network
    elif kind == "refiner":
        from ..networks.refiner import Refiner as Network
    elif kind == "color_regressor":
        from ..networks.color_regressor import ColorRegressor as Network
    else:
        from ..networks.harmony_vae import HarmonyVAE as Network
    with torch.device("meta"):
        return Network.from_config(config)


def _check_shapes(kind: str, want: dict[str, tuple], have: dict[str, tuple], where: object) -> None:
    wrong = [key for key in want if have.get(key, want[key]) != want[key]]
    faults = {
        "missing": [key for key in want if key not in have],
        "left over": [key for key in have if key not in want and (kind, key) != _SPARE],
        "of another shape": [f"{key} {list(have[key])} instead of {list(want[key])}" for key in wrong],
    }
    words = [f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys]
    if words:
        before = "" if where is None else f"{where}: "
        raise InputError(
            f"{before}The {NAMES[kind]}'s tensors do not fit its config: {'; '.join(words)}. "
            "Use the config.json that belongs to these weights, or get the weights again."
        )


def check_finite(part: Part, where: object) -> None:
    """ValueError where a weight is NaN or infinite."""
    for key, tensor in part.state.items():
        if not is_finite(tensor):
            raise InputError(f"{where}: {key} holds NaN or infinity. Get or train these weights again.")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are; in one pass and without memory, unlike `isfinite().all()`."""
    return tensor.numel() == 0 or all(torch.isfinite(limit) for limit in tensor.detach().aminmax())


def facts(kind: str, shapes: dict[str, tuple], where: object) -> dict:
    """What the shapes say, under the config's names. ValueError where tensors for that are missing."""

    def count(prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})

    def size(key: str, axis: int) -> int:
        if len(shapes.get(key, ())) <= axis:
            raise InputError(f"{configs.prefix(where, kind)} is not whole, {key} is missing. Get the weights again.")
        return shapes[key][axis]

    if kind == "text_encoder":
        return {
            "vocab_size": size("embeddings.token_embedding.weight", 0),
            "hidden_size": size("embeddings.token_embedding.weight", 1),
            "max_position_embeddings": size("embeddings.position_embedding.weight", 0),
            "num_hidden_layers": count("encoder.layers."),
            "intermediate_size": size("encoder.layers.0.mlp.fc1.weight", 0),
        }
    if kind == "color_regressor":
        return {"width": size("curve.weight", 1), "heads": size("query.weight", 0) // HEAD_WIDTH}
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


def _modern(key: str, kind: str) -> str:
    """Today's name of a tensor: earlier diffusers had others for attention in VAEs (`sd-vae-ft-mse`) and refiners."""
    if kind == "text_encoder":
        return key.removeprefix("text_model.")
    if kind == "unet":
        return key
    old = re.search(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", key) if ".attentions." in key else None
    return key[: old.start()] + _OLD_ATTENTION[old[1]] + key[old.end() :] if old else key


def _inferred(kind: str, found: dict, where: object) -> dict:
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
