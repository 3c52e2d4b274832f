"""What the tests of the trainers share: a tiny data set, short runs, and runs in a process that is killed."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffharmony_models.__main__ import main

SMALL = {
    "batch_size": 2,
    "workers": 0,
    "log_every": 1,
    "sample_every": 2,
    "checkpoint_every": 2,
    "learning_rate": 1e-3,
    "warmup": 1,
}
WIDTHS = [32, 32, 32, 32]


def make_dataset(root: Path, mask: int = 255, pairs: int = 6) -> Path:
    """Pairs in the shape of iHarmony4: smooth pictures, a darkened rectangle that the mask marks with that grey."""
    rng = np.random.default_rng(0)
    for folder in ("composite_images", "masks", "real_images"):
        (root / "Small" / folder).mkdir(parents=True)
    names = []
    for index in range(pairs):
        real = np.asarray(
            Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)
        )
        matte = np.zeros((72, 96), np.uint8)
        matte[20:50, 20:70] = 255
        composite = np.where(matte[..., None] > 0, real // 2, real)
        Image.fromarray(real).save(root / "Small/real_images" / f"p{index}.png")
        Image.fromarray(matte // 255 * np.uint8(mask)).save(root / "Small/masks" / f"p{index}_1.png")
        Image.fromarray(composite.astype(np.uint8)).save(root / "Small/composite_images" / f"p{index}_1_1.png")
        names.append(f"Small/composite_images/p{index}_1_1.png")
    (root / "IHD_train.txt").write_text("\n".join(names))
    return root


def command(name: str, *arguments: object, output: Path, steps: int = 4, **settings: object) -> list[str]:
    """A trainer's command line, with a recipe of these settings beside its output."""
    part = name.removeprefix("train-").replace("-", "_")
    path = output.with_name(f"{output.name}-{part}.toml")
    write_recipe(path, part, {**SMALL, "steps": steps, **settings})
    return [name, "--config", str(path), "--output", str(output), *map(str, arguments)]


def write_recipe(path: Path, part: str, settings: dict[str, object]) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    path.write_text("\n".join([f"[{part}]", *lines]))


def autoencoder(dataset: Path, *more: object, **run) -> list[str]:
    photos = dataset / "Small/real_images"
    return command("train-autoencoder", photos, *more, **{"size": 32, "widths": WIDTHS, "groups": 8, **run})


def harmony_vae(dataset: Path, vae: Path, *more: object, **run) -> list[str]:
    return command("train-harmony-vae", dataset, "--from", vae, *more, **{"size": 32, **run})


def color_regressor(dataset: Path, *more: object, **run) -> list[str]:
    return command("train-color-regressor", dataset, *more, **{"size": 64, **run})


def harmonizer(dataset: Path, vae: Path, *more: object, **run) -> list[str]:
    settings = {"size": 64, "widths": WIDTHS, "prediction_type": "v_prediction", "objective": "sampler"}
    return command("train-harmonizer", dataset, "--vae", vae, *more, **{**settings, **run})


def refiner(dataset: Path, stage1: Path, *more: object, **run) -> list[str]:
    return command(
        "train-refiner", dataset, "--from", stage1, *more, **{"size": 64, "widths": WIDTHS, "layers": 1, **run}
    )


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line with which a run ends."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in lines if not re.search(r"\d/\d+ \[|^note: |^$", line)]  # but for bars and notes
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 600, lines
    return lines[0]


def losses(output: Path) -> list[tuple[int, float]]:
    """(step, loss) of every point that any start of the run logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for file in sorted(output.glob("logs/**/events*")):
        events = EventAccumulator(str(file)).Reload()
        if "loss" in events.Tags()["scalars"]:
            found += [(scalar.step, scalar.value) for scalar in events.Scalars("loss")]
    return sorted(found)


# A process from which others are forked: torch and diffusers are imported once, and each run is a process all the same.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([
    "torch.utils.tensorboard",
    "accelerate",
    "diffusers.models",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.training_utils",
    "pytest",
])  # fmt: skip


def start(arguments: list[str], stderr: Path, die: str = "", file_limit: int = 0, **environment: str):
    """A run in a process of its own, which kills itself (signal 9) where `die` says: see `_die`.

    file_limit: bytes that a file may have, as on a disk that is full.
    """
    process = PROCESSES.Process(target=_child, args=(arguments, stderr, die, file_limit, environment))
    process.start()
    return process


def run(arguments: list[str], stderr: Path, die: str = "", file_limit: int = 0) -> int:
    """The exit code of such a run; -9 where it was killed."""
    process = start(arguments, stderr, die, file_limit)
    process.join()
    return process.exitcode


def _child(arguments: list[str], stderr: Path, die: str, file_limit: int, environment: dict[str, str]) -> None:
    with open(stderr, "w") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    random.seed(), np.random.seed(), torch.seed()  # a new process begins with random numbers of its own
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        None, force=True
    )  # this process's own way of starting others, not the fork server's
    if die:
        _die(*die.split())
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.exit(main(arguments))


def _die(place: str, number: str) -> None:
    """What `die` says.

    "before N": when step N (from 0) begins; "saving N": when half of step N's checkpoint is written; "file N": when
    half of the Nth other file is.
    """
    from diffharmony_models.training import loop, state

    learning_rate, save_file, write_bytes = loop.learning_rate, state.save_file, Path.write_bytes
    written = []

    def begin(at, settings):
        if place == "before" and at == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return learning_rate(at, settings)

    def save(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if place == "saving" and metadata.get("step") == number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def write(path, content):
        written.append(path)
        if place == "file" and len(written) == int(number):
            write_bytes(path, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write_bytes(path, content)

    loop.learning_rate, state.save_file, Path.write_bytes = begin, save, write
