"""What a training goes on from. A run's folder is no more trusted than any weight file, so nothing in it is unpickled.

CHECKPOINT/state.safetensors holds `model.NAME`, `ema.NAME` and `optimizer.NAME.{step,exp_avg,exp_avg_sq}` under the
model's own names; its metadata the step, the seed, whether there is an EMA and, for float16, the loss scaler's numbers.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError
from ..files.writing import replacing

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

FILE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all. InputError where the disk does not take it."""
    try:
        with replacing(path) as unfinished:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, unfinished, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be written ({error}). Make room on the disk and start again; what is there is whole."
        ) from error


def digest(*parts: Mapping[str, torch.Tensor]) -> str:
    """What tells weights from others: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for tensors in parts:
        for name, tensor in sorted(tensors.items()):
            found.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. InputError where it is none."""
    with _opened(path) as file:
        return file.metadata() or {}


def read(path: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, which must have the names, shapes and dtypes of `expected` (of any device).

    InputError where the file is damaged, something is missing, left over or of another shape, before anything is
    loaded; or where a value is not finite.
    """
    with _opened(path) as file:
        found = set(file.keys())
        if odd := sorted(found ^ expected.keys()):
            raise InputError(
                f"{path} {'has' if odd[0] in found else 'lacks'} {odd[0][:99]}, unlike this training. {_SAME_SETTINGS}"
            )
        for name, tensor in expected.items():
            part = file.get_slice(name)
            there, wanted = (part.get_dtype(), part.get_shape()), (_DTYPES.get(tensor.dtype), list(tensor.shape))
            if there != wanted:
                raise InputError(
                    f"{path}: {name} is {there[0]} {there[1]} there and {wanted[0]} {wanted[1]} now. {_SAME_SETTINGS}"
                )
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} holds NaN or infinite values. Delete what is damaged and start again.")
    return tensors


_SAME_SETTINGS = "Start with the settings and the files that it was made with, or with another --output."


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise InputError(f"{path} is not a file. Give another --output, or delete what lies there and start again.")
    try:
        return safe_open(str(path), "pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged or incomplete ({error}). Delete it and start again.") from error


class State:
    """All that changes in a training: the model, its average, the optimiser and the loss scaler.

    Args:
        model: the module itself, out of any wrapper for several processes.
        optimizer: AdamW over the model's trained parameters, in the model's order.
        ema: diffusers' EMAModel of all of the model's parameters, or None.
        scaler: the GradScaler of float16, or None.
        seed: of the run.
        made_of: what else must be the same when the run goes on, as {what it is: its `digest`}.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: "EMAModel | None",
        scaler: torch.amp.GradScaler | None,
        seed: int,
        made_of: Mapping[str, str] | None = None,
    ):
        self.model, self.optimizer, self.ema, self.scaler, self.seed = model, optimizer, ema, scaler, seed
        self.made_of = dict(made_of or {})
        self.trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def save(self, folder: Path, step: int) -> None:
        """Writes `folder`/state.safetensors after step number `step`."""
        tensors = self._weights()
        parameters = dict(self.model.named_parameters())
        moments = self.optimizer.state_dict()["state"]
        for index, name in enumerate(self.trained):
            # What had no gradient yet has no moments; zeros are what AdamW would begin with.
            new = {"step": torch.zeros(()), **{kind: torch.zeros_like(parameters[name]) for kind in MOMENTS}}
            tensors |= {f"optimizer.{name}.{kind}": value for kind, value in (moments.get(index) or new).items()}
        facts = self._facts(step)
        if self.scaler is not None:
            scaling = self.scaler.state_dict()
            facts |= {"scale": str(scaling["scale"]), "growth_tracker": str(scaling["_growth_tracker"])}
        write(folder / FILE, tensors, facts)

    def load(self, folder: Path, step: int) -> None:
        """Reads what `save` wrote there. InputError, with the file's name, for all that does not fit this training."""
        path = folder / FILE
        if not path.is_file():
            raise InputError(
                f"{folder} holds no {FILE}: it is incomplete or from an older version. Delete it and start again, "
                "or give another --output."
            )
        facts = metadata(path)
        for name, now in self._facts(step).items():
            if facts.get(name) != now:
                raise InputError(
                    f"{path} was made with {name} {str(facts.get(name))[:40]}, this run has {now}. {_SAME_SETTINGS}"
                )
        expected = self._weights()
        parameters = dict(self.model.named_parameters())
        for name in self.trained:
            expected[f"optimizer.{name}.step"] = torch.empty((), device="meta")
            expected |= {f"optimizer.{name}.{kind}": parameters[name] for kind in MOMENTS}
        tensors = read(path, expected)
        if any(
            (tensors[f"optimizer.{name}.{kind}"] < 0).any() for name in self.trained for kind in ("step", "exp_avg_sq")
        ):
            raise InputError(f"{path} is damaged: a sum of squares is negative. Delete it and start again.")
        scaling = self._scaling(path, facts)
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        if self.ema is not None:
            self.ema.optimization_step = step
            for name, average in zip(parameters, self.ema.shadow_params):
                average.copy_(tensors[f"ema.{name}"])
        moments = {}
        for index, name in enumerate(self.trained):
            # In the memory order of their parameter: a fused AdamW goes through all of them side by side.
            parts = {kind: torch.empty_like(parameters[name].detach()) for kind in MOMENTS}
            moments[index] = {"step": tensors[f"optimizer.{name}.step"]} | {
                kind: part.copy_(tensors[f"optimizer.{name}.{kind}"]) for kind, part in parts.items()
            }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if scaling is not None and self.scaler is not None:
            self.scaler.load_state_dict({**self.scaler.state_dict(), **scaling})

    def _facts(self, step: int) -> dict[str, str]:
        own = {"step": str(step), "seed": str(self.seed), "EMA": "off" if self.ema is None else "on"}
        return own | self.made_of

    def _weights(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema is not None:
            names = (name for name, _ in self.model.named_parameters())
            tensors |= {f"ema.{name}": average for name, average in zip(names, self.ema.shadow_params)}
        return tensors

    def _scaling(self, path: Path, facts: dict[str, str]) -> dict[str, float | int] | None:
        """The loss scaler's numbers, or None where this training or that one has none."""
        if self.scaler is None or "scale" not in facts:
            return None
        try:
            scaling = {"scale": float(facts["scale"]), "_growth_tracker": int(facts["growth_tracker"])}
        except (KeyError, ValueError) as error:
            raise InputError(f"{path} holds no usable loss scale ({error}). Delete it and start again.") from error
        if not (0 < scaling["scale"] < 2.0**127 and 0 <= scaling["_growth_tracker"] < 2**31):
            raise InputError(f"{path} holds a loss scale out of range. Delete it and start again.")
        return scaling
