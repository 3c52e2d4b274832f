"""The devices that there are, and what each computes in."""

import torch

from .errors import InputError

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16, "half": torch.float16,
}  # fmt: skip


def find_device(name: str) -> torch.device:
    """A device that is there; "auto" takes the best. InputError for unknown and absent ones."""
    there = ["cpu"] + [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device("cpu" if len(there) == 1 else there[1])
    if (f"{name}:0" if name == "cuda" else name) not in there:
        raise InputError(f"no device {name!r} here; there is {', '.join(there)}")
    return torch.device(name)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device computes in it natively; else float16 on CUDA and float32 anywhere else."""
    device = torch.device(device)
    if device.type == "cuda":
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        # Private in torch and absent from older ones: where they cannot be asked, float32 is right anyway.
        checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
        if any(check is not None and check() for check in checks):
            return torch.bfloat16
    return torch.float32
