"""One part of a checkpoint: its tensors and its config, whether they fit, and the network that they make."""

import importlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..errors import InputError
from . import configs, kinds
from .files import aligned
from .kinds import KINDS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SPARE = ("text_encoder", "text_projection.weight")  # saved with it, of no use here
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass
class Part:
    """One network. config: the content of a diffusers config.json. state: its tensors, in the dtype they are stored in;
    where they come from a file they are mapped from it, and take memory once they are used."""

    config: dict
    state: dict[str, torch.Tensor]


def part_from(module: torch.nn.Module) -> Part:
    """The Part of a network that was built here, e.g. after training: its config and its tensors (not copies)."""
    config = json.loads(module.to_json_string()) if hasattr(module, "to_json_string") else dict(module.config)
    return Part(config, module.state_dict())


def loaded(kind: str, part: Part, where: object) -> Part:
    """A part as it came from a folder or a file, under today's names and known to be whole and finite.

    where: named in errors (InputError).
    """
    actual = kinds.of_tensors(part.state)
    if actual != kind:
        words = f"they are those of a {KINDS[actual].title}" if actual else strangers(part.state)
        raise InputError(f"{where}: config.json describes a {KINDS[kind].title}, but of its tensors: {words}.")
    state = {_modern(key, kind): tensor for key, tensor in part.state.items() if not key.endswith("position_ids")}
    if kind != "unet":
        for key, tensor in state.items():
            if ".attentions." in key and tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
                state[key] = tensor.flatten(1)
    part = checked(kind, Part(part.config, state), where)
    check_finite(part, where)
    return part


def checked(kind: str, part: Part, where: object = None) -> Part:
    """The part with a clean config, and known to be whole: the tensors that the config asks for and no others, of its
    shapes, in floating point. No memory is taken for a network to find that out.

    where: named in the InputError for a part that is not.
    """
    have = _shapes(part.state)
    config = configs.clean(kind, part.config, where)
    for key, tensor in part.state.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(
                f"{configs.prefix(where, kind)}'s {key} is stored as {tensor.dtype}; expected plain fp32, fp16 or bf16 "
                "weights. Get those."
            )
    expected = KINDS[kind].expected
    want = expected(config) if expected else _shapes(_skeleton(kind, config).state_dict())
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
            f"{before}The {KINDS[kind].title}'s tensors do not fit its config: {'; '.join(words)}. "
            "Use the config.json that belongs to these weights, or get the weights again."
        )
    return Part(config, part.state)


def build(kind: str, part: Part) -> torch.nn.Module:
    """The network of a part, in eval mode, strictly loaded. kind: of `PARTS`.

    It is in the part's dtype and its parameters *are* the part's tensors, not copies, so two modules of one part share
    them; copy one (`copy.deepcopy`) before training it. Raises InputError for a config that describes no network of
    ours and, naming some keys, when tensors are missing, left over or of another shape.
    """
    part = checked(kind, part)
    module = _skeleton(kind, part.config)
    module.load_state_dict(part.state, strict=True, assign=True)
    return module.eval()


def settled(part: Part) -> Part:
    """The part with each tensor where kernels treat it as torch's own: a copy of those that are mapped elsewhere."""
    return Part(part.config, {key: aligned(tensor) for key, tensor in part.state.items()})


def check_finite(part: Part, where: object) -> None:
    """InputError where a weight is NaN or infinite."""
    for key, tensor in part.state.items():
        if not is_finite(tensor):
            raise InputError(f"{where}: {key} holds NaN or infinity. Get or train these weights again.")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are; in one pass and without memory, unlike `isfinite().all()`."""
    return tensor.numel() == 0 or all(torch.isfinite(limit) for limit in tensor.detach().aminmax())


def strangers(names: Iterable[str]) -> str:
    """Words for tensors that are those of no part."""
    names = list(names)
    if any(name.startswith(("model.diffusion_model.", "first_stage_model.", "encoder.down.")) for name in names):
        return "they have the names of the original Stable Diffusion files; convert them to a diffusers folder first"
    if any(name.startswith(("unet.", "refiner.")) for name in names):
        return "they look like a one-file checkpoint's, but the metadata is lost; convert it again"
    return f"those of no part known here ({', '.join(names[:3]) or 'none at all'})"


def _skeleton(kind: str, config: dict) -> torch.nn.Module:
    """The network that a clean config describes, without memory of its own."""
    module, name = KINDS[kind].network
    network = getattr(importlib.import_module(module, __package__), name)
    with torch.device("meta"):
        return network.from_config(config)


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _modern(key: str, kind: str) -> str:
    """Today's name of a tensor: earlier diffusers had others for attention in VAEs (`sd-vae-ft-mse`) and refiners."""
    if kind == "text_encoder":
        return key.removeprefix("text_model.")
    if kind == "unet":
        return key
    old = re.search(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", key) if ".attentions." in key else None
    return key[: old.start()] + _OLD_ATTENTION[old[1]] + key[old.end() :] if old else key
