"""What a frozen network makes of the data, computed once before a training and kept in one file beside the run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from . import data, state
from .recipe import Settings


class Cached:
    """Samples made ahead: every item of `samples` `repeats` times, each time with another augmentation, through `make`.

    The file is written once, whole, and used again when the run goes on; its metadata says what it was made of, and
    where that differs it is made anew. It is trusted no more than any other file: names, shapes and dtypes must be
    `make`'s. Floating-point values are kept as float16 or, as a picture in [0, 1] (`dtype` uint8), in 256 levels.

    Args:
        path: the file.
        samples: `len(samples)`, `samples.get(index, rng)`.
        make: `make(batch, seeds) -> batch`, a batch of samples in, what is to be kept out; one seed for each sample.
        dtype: float16 or uint8.
        settings: the training's; their seed decides the augmentation.
        made_of: what else, beside seed and repeats, decides the content.
    """

    def __init__(
        self,
        path: Path,
        samples: data.Samples,
        settings: Settings,
        repeats: int,
        make: Callable,
        dtype: torch.dtype,
        made_of: dict[str, str],
    ):
        made_of = {**made_of, "seed": str(settings.seed), "repeats": str(repeats), "samples": str(len(samples))}
        if not path.exists() or state.metadata(path) != made_of:
            _write(path, samples, settings, repeats, make, dtype, made_of)
        number = len(samples) * repeats
        self.tensors = state.read(path, _expected(samples, settings.seed, make, dtype, number))

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        found = {name: tensor[index] for name, tensor in self.tensors.items()}
        return {
            name: value.float() / 255 if value.dtype == torch.uint8 else value.float() for name, value in found.items()
        }


def _expected(
    samples: data.Samples, seed: int, make: Callable, dtype: torch.dtype, number: int
) -> dict[str, torch.Tensor]:
    """Name, shape and dtype of what the file holds, as `make` answers to the first sample: tensors without content."""
    sample = _Repeated(samples, seed, range(1))[0]
    batch = {name: value[None].to(_device()) for name, value in sample.items() if name != "position"}
    with torch.no_grad():
        made = make(batch, [0])
    return {name: torch.empty(number, *value.shape[1:], dtype=dtype, device="meta") for name, value in made.items()}


def _device() -> torch.device:
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


def _write(
    path: Path,
    samples: data.Samples,
    settings: Settings,
    repeats: int,
    make: Callable,
    dtype: torch.dtype,
    made_of: dict[str, str],
) -> None:
    """Each process makes its share, the first one writes the file: beside first, then renamed."""
    from accelerate import PartialState
    from tqdm import tqdm

    device, processes = _device(), PartialState()
    path.parent.mkdir(parents=True, exist_ok=True)
    if processes.is_main_process:
        for left in path.parent.glob(f"*{path.name}*.part"):  # by a run that was killed
            left.unlink()
    processes.wait_for_everyone()
    mine = _Repeated(
        samples, settings.seed, range(processes.process_index, len(samples) * repeats, processes.num_processes)
    )
    batches = data.load(mine, settings.workers, batch_size=8)
    total = -(-len(mine) // 8)
    kept: dict[str, list[torch.Tensor]] = {}
    for batch in tqdm(batches, total=total, desc=f"making {path.name}", disable=not processes.is_main_process):
        seeds = batch.pop("position").tolist()
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad():
            made = make(batch, seeds)
        for name, value in made.items():
            kept.setdefault(name, []).append(
                (value * 255).round().byte().cpu() if dtype == torch.uint8 else value.to("cpu", dtype)
            )
    share = path.with_name(f"{path.name}.{processes.process_index}.part")
    try:
        state.write(share, {name: torch.cat(values) for name, values in kept.items()}, {})
        processes.wait_for_everyone()
        if processes.is_main_process:
            shares = [load_file(str(part)) for part in sorted(path.parent.glob(f"{path.name}.*.part"))]
            state.write(path, {name: torch.cat([part[name] for part in shares]) for name in kept}, made_of)
        processes.wait_for_everyone()
    finally:
        share.unlink(missing_ok=True)


class _Repeated(torch.utils.data.Dataset):
    """Sample `position % len`, augmented by a generator of the position's own."""

    def __init__(self, samples: data.Samples, seed: int, positions: range):
        self.samples, self.seed, self.positions = samples, seed, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int) -> dict:
        position = self.positions[place]
        sample = self.samples.get(position % len(self.samples), np.random.default_rng((self.seed, 4, position)))
        return {**sample, "position": position}
