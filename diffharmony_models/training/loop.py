"""The one training loop: accelerate, checkpoints, EMA, curves and sample sheets.

A trainer brings its model, a dataset and a loss. Everything random is drawn from (seed, position), never from a running
state: sample number *n* of a run is the same after a resume as in an unbroken run, so a checkpoint holds only the weights,
the optimiser, the EMA and the step.
"""

import argparse
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, batch_size: int, learning_rate: float) -> None:
    """The flags every trainer has; the three defaults differ from trainer to trainer."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--output", type=Path, required=True, help="folder of the run: checkpoints, curves, samples, result"
    )
    group.add_argument("--steps", type=int, default=steps, help="optimiser steps in all (default %(default)s)")
    group.add_argument(
        "--batch-size", type=int, default=batch_size, help="samples a step and process (default %(default)s)"
    )
    group.add_argument(
        "--learning-rate", type=float, default=learning_rate, help="peak learning rate (default %(default)s)"
    )
    group.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up (default %(default)s)")
    group.add_argument(
        "--schedule", choices=("constant", "cosine"), default="constant", help="after the warm-up (default %(default)s)"
    )
    group.add_argument("--weight-decay", type=float, default=1e-2, help="AdamW weight decay (default %(default)s)")
    group.add_argument(
        "--gradient-norm", type=float, default=1.0, help="gradients are clipped to this norm (default %(default)s)"
    )
    group.add_argument(
        "--gradient-accumulation", type=int, default=1, help="batches that make one step (default %(default)s)"
    )
    group.add_argument(
        "--ema-decay",
        type=float,
        default=0.9999,
        help="decay of the averaged weights; 0 = no EMA (default %(default)s)",
    )
    group.add_argument(
        "--mixed-precision",
        choices=("no", "bf16", "fp16"),
        default=None,
        help="autocast (default: accelerate's setting)",
    )
    group.add_argument(
        "--checkpoint-every", type=int, default=500, help="steps between checkpoints (default %(default)s)"
    )
    group.add_argument(
        "--keep-checkpoints", type=int, default=2, help="how many are kept; 0 = all (default %(default)s)"
    )
    group.add_argument(
        "--sample-every", type=int, default=500, help="steps between sample sheets; 0 = none (default %(default)s)"
    )
    group.add_argument(
        "--log-every", type=int, default=20, help="steps between points of the curves (default %(default)s)"
    )
    group.add_argument("--workers", type=int, default=2, help="data loading processes (default %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="seed of everything random (default %(default)s)")


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then constant or a half cosine to zero at `args.steps`."""
    rate = args.learning_rate * min(1.0, (step + 1) / max(1, args.warmup))
    if args.schedule == "cosine":
        done = max(0, step - args.warmup) / max(1, args.steps - args.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return rate


class Positions(Dataset):
    """A dataset read by position: item *n* of the run is sample `permutation(seed, n // len)[n % len]`, with its own generator.

    `samples` has `__len__` and `get(index, rng)`, where `rng` is a `numpy.random.Generator` for the augmentation.
    """

    def __init__(self, samples, seed: int):
        if len(samples) == 0:
            raise InputError("The training data is empty: no sample was found. Check the data folder and its list.")
        self.samples, self.seed, self._epoch = samples, seed, (-1, None)

    def __getitem__(self, position: int):
        epoch, place = divmod(position, len(self.samples))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.samples)))
        return self.samples.get(int(self._epoch[1][place]), np.random.default_rng((self.seed, 2, position)))


def batches(samples, args, *, first_step: int, rank: int, world: int) -> DataLoader:
    """The batches of one process from `first_step` on: consecutive positions, each process its own slice of every step."""
    per_process = args.batch_size

    def positions():
        for micro in range(first_step * args.gradient_accumulation, args.steps * args.gradient_accumulation):
            start = (micro * world + rank) * per_process
            yield list(range(start, start + per_process))

    return DataLoader(
        Positions(samples, args.seed),
        batch_sampler=_Listed(positions),
        num_workers=args.workers,
        persistent_workers=False,
        prefetch_factor=4 if args.workers else None,
    )


class _Listed:
    def __init__(self, positions: Callable):
        self.positions = positions

    def __iter__(self):
        return self.positions()


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def train(
    args: argparse.Namespace,
    model: torch.nn.Module,
    samples,
    loss: Callable,
    *,
    export: Callable,
    sample: Callable | None = None,
) -> None:
    """Trains `model` and exports it.

    Args:
        args: what `add_arguments` parsed.
        model: the module to train; all of its parameters that require a gradient.
        samples: `len(samples)` and `samples.get(index, rng) -> dict of tensors`.
        loss: `loss(model, batch, generator) -> (scalar, {name: number})`; draw noise from `generator` only.
        export: `export(model)`, called once at the end with the averaged weights (the live ones without EMA).
        sample: `sample(model, step)`, called now and then with the averaged weights, which are put back afterwards.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from diffusers.training_utils import EMAModel
    from tqdm import tqdm

    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation,
        log_with="tensorboard",
        project_dir=str(args.output),
    )
    args.output.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=args.learning_rate, betas=(0.9, 0.999), weight_decay=args.weight_decay, fused=True
    )
    model.to(accelerator.device)
    ema = EMAModel(model.parameters(), decay=args.ema_decay) if args.ema_decay else None
    if ema:
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.init_trackers("logs")

    step = 0
    if done := checkpoints(args.output):
        accelerator.load_state(str(done[-1]))
        step = int(done[-1].name.removeprefix("checkpoint-"))
        logger.info("going on from %s", done[-1])

    loader = batches(samples, args, first_step=step, rank=accelerator.process_index, world=accelerator.num_processes)
    bar = tqdm(total=args.steps, initial=step, disable=not accelerator.is_main_process, desc=args.output.name)
    running: dict[str, list[float]] = {}
    for micro, batch in enumerate(loader, start=step * args.gradient_accumulation):
        batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
        generator = torch.Generator(accelerator.device).manual_seed(
            _seed_of(args.seed, micro, accelerator.process_index)
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        with accelerator.accumulate(model), accelerator.autocast():
            value, numbers = loss(model, batch, generator)
            if not torch.isfinite(value):
                raise InputError(
                    f"The loss became {value.item()} at step {step}. Lower --learning-rate (now {args.learning_rate:g}) and start "
                    f"again from the last checkpoint in {args.output}."
                )
            accelerator.backward(value)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(trained, args.gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for name, number in {"loss": value.item(), **numbers}.items():
            running.setdefault(name, []).append(float(number))
        if not accelerator.sync_gradients:
            continue
        if ema:
            ema.step(model.parameters())
        step += 1
        bar.update()
        if step % args.log_every == 0:
            means = {name: float(np.mean(values)) for name, values in running.items()}
            accelerator.log({**means, "learning_rate": learning_rate(step - 1, args)}, step=step)
            bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
            running.clear()
        if step % args.checkpoint_every == 0 or step == args.steps:
            _save(accelerator, args, step)
        if sample and args.sample_every and step % args.sample_every == 0 and accelerator.is_main_process:
            with _averaged(ema, accelerator.unwrap_model(model)) as averaged:
                sample(averaged, step)
    bar.close()
    if accelerator.is_main_process:
        with _averaged(ema, accelerator.unwrap_model(model)) as averaged:
            export(averaged)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _seed_of(seed: int, micro: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, 3, micro, rank)).generate_state(1, np.uint64)[0] >> 1)


def _save(accelerator, args, step: int) -> None:
    """Writes checkpoint-STEP beside and renames it, so that what carries the name is whole; then drops the oldest."""
    target, beside = args.output / f"checkpoint-{step}", args.output / f"partial-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(beside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(beside, target)
        if args.keep_checkpoints:
            for old in checkpoints(args.output)[: -args.keep_checkpoints]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


class _averaged:
    """The model with the EMA's weights inside the block, with its own live weights again after it."""

    def __init__(self, ema, model: torch.nn.Module):
        self.ema, self.model = ema, model

    def __enter__(self) -> torch.nn.Module:
        self.was_training = self.model.training
        if self.ema:
            self.ema.store(self.model.parameters())
            self.ema.copy_to(self.model.parameters())
        return self.model.eval()

    def __exit__(self, *_) -> None:
        if self.ema:
            self.ema.restore(self.model.parameters())
        self.model.train(self.was_training)
