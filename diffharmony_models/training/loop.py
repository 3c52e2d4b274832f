"""The one training loop: accelerate, checkpoints, EMA, curves and sample sheets.

A trainer brings its model, a dataset and a loss. Everything random is drawn from (seed, position), never from a running
state: sample number *n* of a run is the same after a resume as in an unbroken run, so a checkpoint holds only the
weights, the optimiser, the EMA and the step (see `state`).
"""

import logging
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import InputError, disk_full, one_line
from ..files import images, sheets
from . import data
from .recipe import Settings
from .state import State

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

logger = logging.getLogger(__name__)

NOTHING_TO_LEARN = 10
"""So many steps in a row without any loss, or without any foreground, end a training."""

GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm."""


def seeded(settings: Settings) -> None:
    """Seeds every generator there is. A trainer calls it first, before it builds a new network."""
    _seed_all(settings.seed)


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then constant or a half cosine to zero at `settings.steps`."""
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "cosine":
        done = max(0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return rate


class Positions(Dataset):
    """A dataset read by position: item *n* of the run is sample `permutation(seed, n // len)[n % len]`, with its own
    generator.

    `samples` has `__len__` and `get(index, rng)`, where `rng` is a `numpy.random.Generator` for the augmentation.
    """

    def __init__(self, samples: data.Samples, seed: int):
        if len(samples) == 0:
            raise InputError("The training data is empty: no sample was found. Check the data folder and its list.")
        self.samples, self.seed = samples, seed
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(position, len(self.samples))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.samples)))
        return self.samples.get(int(self._epoch[1][place]), np.random.default_rng((self.seed, 2, position)))


def batches(samples: data.Samples, settings: Settings, *, first_step: int, rank: int, world: int) -> Iterator[dict]:
    """The batches of one process from `first_step` on: consecutive positions, each process its own slice of every
    step.
    """
    per_process = settings.batch_size

    def positions() -> Iterator[list[int]]:
        for micro in range(
            first_step * settings.gradient_accumulation, settings.steps * settings.gradient_accumulation
        ):
            start = (micro * world + rank) * per_process
            yield list(range(start, start + per_process))

    return data.load(Positions(samples, settings.seed), settings.workers, batch_sampler=_Listed(positions))


class _Listed:
    def __init__(self, positions: Callable):
        self.positions = positions

    def __iter__(self) -> Iterator[list[int]]:
        return self.positions()


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch("checkpoint-[0-9]{1,10}", path.name)]
    return sorted(found, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


@contextmanager
def _enough_room() -> Iterator[None]:
    """InputError where the training needs more memory, or more of the disk, than there is."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(error):
            raise
        raise InputError(
            "The training needs more memory than there is: lower --batch-size, or the size in the recipe."
        ) from error
    except OSError as error:
        if not disk_full(error):
            raise
        raise InputError(
            f"No room on the disk ({one_line(error)}). Make room and start again; it goes on from the last checkpoint."
        ) from error


@_enough_room()
def train(
    settings: Settings,
    output: Path,
    model: torch.nn.Module,
    samples: data.Samples,
    loss: Callable,
    *,
    export: Callable,
    sample: Callable | None = None,
    made_of: Mapping[str, str] | None = None,
) -> None:
    """Trains `model` and exports it.

    Args:
        settings: what decides the run.
        output: its folder.
        model: the module to train; all of its parameters that require a gradient.
        samples: `len(samples)` and `samples.get(index, rng) -> dict of tensors`.
        loss: `loss(model, batch, generator) -> (scalar, {name: number})`, the numbers as tensors, so that no step
            waits for them; NaN where a batch has none. Draw noise from `generator` only.
        export: `export(model)`, called once at the end with the averaged weights (the live ones without EMA).
        sample: `sample(model)`, called now and then with the averaged weights: the columns of a sheet (`sheets.grid`),
            which is written to the run's folder.
        made_of: the weights that the run is built on, as `state.State` keeps them: a run goes on with no others.

    Raises:
        InputError: a checkpoint that does not fit, a loss that is not finite, nothing to learn, no room on the
            disk or in memory.
    """
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel
    from tqdm import tqdm

    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.gradient_accumulation,
            log_with="tensorboard",
            project_dir=str(output),
        )
    except ValueError as error:  # a precision that the device does not have
        raise InputError(f"{error} Give the recipe another mixed_precision.") from error
    output.mkdir(parents=True, exist_ok=True)
    _seed_all(settings.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=(0.9, 0.999), weight_decay=settings.weight_decay, fused=True
    )
    model.to(accelerator.device)
    ema = EMAModel(model.parameters(), decay=settings.ema_decay) if settings.ema_decay else None
    if ema:
        ema.to(accelerator.device)
    state = State(model, optimizer, ema, accelerator.scaler, settings.seed, made_of)
    if accelerator.is_main_process:
        for left in output.glob("partial-[0-9]*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    step = 0
    if done := checkpoints(output):
        step = _step_of(done[-1])
        state.load(done[-1], step)
        logger.info("going on from %s", done[-1])
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.init_trackers("logs")

    loader = batches(
        samples, settings, first_step=step, rank=accelerator.process_index, world=accelerator.num_processes
    )
    watch = Watch(settings, output)
    running: dict[str, list[torch.Tensor]] = {}
    with tqdm(total=settings.steps, initial=step, disable=not accelerator.is_main_process, desc=output.name) as bar:
        for micro, batch in enumerate(loader, start=step * settings.gradient_accumulation):
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            noise_seed = _seed_of(settings.seed, micro, accelerator.process_index)
            _seed_all(noise_seed)  # for what draws from the global generators in the network, as dropout does
            generator = torch.Generator(accelerator.device).manual_seed(noise_seed)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            with accelerator.accumulate(model), accelerator.autocast():
                value, numbers = loss(model, batch, generator)
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, GRADIENT_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            watch.see(step, value, batch.get("mask"))
            for name, number in {"loss": value, **numbers}.items():
                running.setdefault(name, []).append(torch.as_tensor(number).detach().float())
            if not accelerator.sync_gradients:
                continue
            if ema:
                ema.step(model.parameters())
            step += 1
            bar.update()
            logs, saves = (
                step % settings.log_every == 0,
                step % settings.checkpoint_every == 0 or step == settings.steps,
            )
            shows = sample is not None and settings.sample_every > 0 and step % settings.sample_every == 0
            if logs or saves or shows:
                watch.check()
            if logs:
                means = {name: torch.stack(values).nanmean().item() for name, values in running.items()}
                means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
                accelerator.log({**means, "learning_rate": learning_rate(step - 1, settings)}, step=step)
                bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
                running.clear()
            if saves:
                _save(accelerator, state, settings, output, step)
            if sample is not None and shows and accelerator.is_main_process:
                with _averaged(ema, accelerator.unwrap_model(model)) as averaged, torch.no_grad():
                    images.write_image(output / "samples" / f"{step:07d}.jpg", sheets.grid(sample(averaged)))
    if accelerator.is_main_process:
        with _averaged(ema, accelerator.unwrap_model(model)) as averaged:
            export(averaged)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _seed_of(seed: int, micro: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, 3, micro, rank)).generate_state(1, np.uint64)[0]) >> 1


class Watch:
    """Looks for what makes going on pointless. Until `check`, numbers stay on their device: no step waits."""

    def __init__(self, settings: Settings, output: Path):
        self.settings, self.output = settings, output
        self.patience = min(NOTHING_TO_LEARN, settings.steps * settings.gradient_accumulation)
        self.seen: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []
        self.without_loss = self.without_mask = 0

    def see(self, step: int, loss: torch.Tensor, mask: torch.Tensor | None) -> None:
        """A batch's loss, and its masks where it has some."""
        self.seen.append((step, loss.detach(), None if mask is None else mask.amax()))

    def check(self) -> None:
        """InputError where a loss since the last check is not finite, or `patience` batches had nothing to learn."""
        steps, losses, masks = zip(*self.seen)
        highest = [None] * len(losses) if masks[0] is None else torch.stack(masks).tolist()
        self.seen.clear()
        for step, loss, mask in zip(steps, torch.stack(losses).tolist(), highest):
            if not math.isfinite(loss):
                raise InputError(
                    f"The loss became {loss} at step {step}. Lower the recipe's learning_rate (now "
                    f"{self.settings.learning_rate:g}) and start again from the last checkpoint in {self.output}."
                )
            self.without_loss = 0 if loss else self.without_loss + 1
            self.without_mask = 0 if mask is None or mask > 0 else self.without_mask + 1
        if self.without_mask >= self.patience:
            raise InputError(
                f"The masks of the last {self.without_mask} batches are empty: nothing is foreground. Masks must be "
                "white, or opaque, where the foreground is."
            )
        if self.without_loss >= self.patience:
            raise InputError(
                f"The loss of the last {self.without_loss} batches is exactly zero: there is nothing to learn. Check "
                "that composites differ from their real pictures and that masks are white where the foreground is."
            )


def _save(accelerator: "Accelerator", state: State, settings: Settings, output: Path, step: int) -> None:
    """Writes checkpoint-STEP beside and renames it, so that what carries the name is whole; then drops the oldest."""
    target, beside = output / f"checkpoint-{step}", output / f"partial-{step}"
    if accelerator.is_main_process:
        try:
            state.save(beside, step)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(beside, target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if settings.keep_checkpoints:
            for old in checkpoints(output)[: -settings.keep_checkpoints]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


class _averaged:
    """The model with the EMA's weights inside the block, with its own live weights again after it."""

    def __init__(self, ema: "EMAModel | None", model: torch.nn.Module):
        self.ema, self.model = ema, model

    def __enter__(self) -> torch.nn.Module:
        self.was_training = self.model.training
        if self.ema:
            self.ema.store(self.model.parameters())
            self.ema.copy_to(self.model.parameters())
        return self.model.eval()

    def __exit__(self, *_: object) -> None:
        if self.ema:
            self.ema.restore(self.model.parameters())
        self.model.train(self.was_training)
