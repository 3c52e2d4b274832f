"""What a frozen network makes of the data, computed once before a training and kept in one file beside the run."""

import argparse
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file


class Cached:
    """Samples made ahead: every item of `samples` `repeats` times, each time with another augmentation, through `make`.

    The file is written once, whole, and used again when the run goes on; its metadata says what it was made of, and where that
    differs it is made anew. Floating-point values are kept as float16 or, as a picture in [0, 1] (`dtype` uint8), in 256 levels.

    Args:
        path: the file.
        samples: `len(samples)`, `samples.get(index, rng)`.
        make: `make(batch, seeds) -> batch`, a batch of samples in, what is to be kept out; one seed for each sample.
        dtype: float16 or uint8.
        made_of: what else, beside the data's arguments, decides the content.
    """

    def __init__(
        self,
        path: Path,
        samples,
        args: argparse.Namespace,
        repeats: int,
        make: Callable,
        dtype: torch.dtype,
        made_of: dict[str, str],
    ):
        made_of = {
            **made_of,
            "dataset": str(args.dataset),
            "list": str(args.list),
            "size": str(args.size),
            "seed": str(args.seed),
            "repeats": str(repeats),
            "samples": str(len(samples)),
        }
        if not (path.is_file() and _metadata(path) == made_of):
            _write(path, samples, args, repeats, make, dtype, made_of)
        with safe_open(str(path), "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def get(self, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        found = {name: tensor[index] for name, tensor in self.tensors.items()}
        return {
            name: value.float() / 255 if value.dtype == torch.uint8 else value.float() for name, value in found.items()
        }


def fingerprint(module: torch.nn.Module) -> str:
    """A digest of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _metadata(path: Path) -> dict:
    with safe_open(str(path), "pt") as file:
        return file.metadata() or {}


def _write(
    path: Path, samples, args, repeats: int, make: Callable, dtype: torch.dtype, made_of: dict[str, str]
) -> None:
    """Each process makes its share, the first one writes the file: beside first, then renamed."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        for left in path.parent.glob(f"{path.name}.*.part"):  # by a run that was killed
            left.unlink()
    state.wait_for_everyone()
    mine = range(state.process_index, len(samples) * repeats, state.num_processes)
    loader = DataLoader(_Repeated(samples, args.seed, mine), batch_size=8, num_workers=args.workers)
    kept: dict[str, list[torch.Tensor]] = {}
    for batch in tqdm(loader, desc=f"making {path.name}", disable=not state.is_main_process):
        seeds = batch.pop("position").tolist()
        batch = {name: value.to(state.device) for name, value in batch.items()}
        with torch.no_grad():
            made = make(batch, seeds)
        for name, value in made.items():
            kept.setdefault(name, []).append(
                (value * 255).round().byte().cpu() if dtype == torch.uint8 else value.to("cpu", dtype)
            )
    share = path.with_name(f"{path.name}.{state.process_index}.part")
    save_file({name: torch.cat(values).contiguous() for name, values in kept.items()}, str(share))
    state.wait_for_everyone()
    if state.is_main_process:
        shares = sorted(path.parent.glob(f"{path.name}.*.part"))
        names = kept.keys()
        opened = [safe_open(str(share), "pt") for share in shares]
        whole = {name: torch.cat([file.get_tensor(name) for file in opened]) for name in names}
        del opened
        beside = path.with_name(f"{path.name}.whole")
        save_file(whole, str(beside), metadata=made_of)
        os.replace(beside, path)
        for share in shares:
            share.unlink()
    state.wait_for_everyone()


class _Repeated(torch.utils.data.Dataset):
    """Sample `position % len`, augmented by a generator of the position's own."""

    def __init__(self, samples, seed: int, positions: range):
        self.samples, self.seed, self.positions = samples, seed, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, place: int):
        position = self.positions[place]
        sample = self.samples.get(position % len(self.samples), np.random.default_rng((self.seed, 4, position)))
        return {**sample, "position": position}
