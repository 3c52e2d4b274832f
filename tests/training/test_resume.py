"""Runs that are killed go on and end with the same weights to the bit; what lies in a run's folder is not trusted."""

import os
import pickle
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
import training_runs as runs
from safetensors.torch import load_file

from diffharmony_models import checkpoint, training
from diffharmony_models.training.state import FILE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(dataset, tmp_path_factory):
    """The unbroken run of each trainer, by its name; each builds on the file of the one before."""
    root = tmp_path_factory.mktemp("whole")
    for name in TRAINERS:
        assert runs.run(arguments(name, dataset, root, root / name), root / "stderr") == 0, read(root / "stderr")
    return root


TRAINERS = {
    "color_regressor": "color_regressor",
    "autoencoder": "vae",
    "harmonizer": "harmonizer",
    "refiner": "diffharmony",
}


def arguments(name, dataset, results, output, *more, **run):
    before = {"harmonizer": ("autoencoder/vae.safetensors",), "refiner": ("harmonizer/harmonizer.safetensors",)}
    files = [results / file for file in before.get(name, ())]
    if name == "harmonizer":
        more = ("--colors", results / "color_regressor/color_regressor.safetensors", *more)
    return getattr(runs, name)(dataset, *files, *more, output=output, **run)


def read(path):
    return path.read_text()


def same(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_killed_run_repeats_to_the_bit(name, dataset, results, tmp_path):
    """Killed before its first checkpoint, in the middle of writing it, and after it."""
    output = tmp_path / name
    command = arguments(name, dataset, results, output)
    for die, left in (("before 1", []), ("saving 2", ["partial-2"]), ("before 3", ["checkpoint-2"])):
        assert runs.run(command, tmp_path / "stderr", die) == -9
        assert sorted(path.name for path in output.glob("*-*")) == left
    assert runs.run(command, tmp_path / "stderr") == 0, read(tmp_path / "stderr")
    assert sorted(path.name for path in output.glob("*-*")) == ["checkpoint-2", "checkpoint-4"]
    whole = dict(runs.losses(results / name))
    assert len(whole) == 4 and runs.losses(output) == [(step, whole[step]) for step in (1, 1, 1, 2, 2, 3, 3, 4)]
    assert same(output / f"{TRAINERS[name]}.safetensors", results / name / f"{TRAINERS[name]}.safetensors")
    assert same(output / "checkpoint-4" / FILE, results / name / "checkpoint-4" / FILE)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("harmonizer", {"made": True, "prediction_type": "sample"}),
        ("refiner", {"cache_outputs": 1, "crop": 32}),
    ],
    ids=["harmonizer", "refiner"],
)
def test_other_ways_repeat_too(dataset, results, tmp_path, name, settings):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    commands = [arguments(name, dataset, results, output, **settings) for output in (whole, broken)]
    assert runs.run(commands[0], tmp_path / "stderr") == 0, read(tmp_path / "stderr")
    assert runs.run(commands[1], tmp_path / "stderr", "before 3") == -9
    assert runs.run(commands[1], tmp_path / "stderr") == 0, read(tmp_path / "stderr")
    assert same(whole / f"{TRAINERS[name]}.safetensors", broken / f"{TRAINERS[name]}.safetensors")


def test_workers_change_nothing(dataset, results, tmp_path):
    command = arguments("harmonizer", dataset, results, tmp_path / "run", "--workers", "2")
    assert runs.run(command, tmp_path / "stderr") == 0, read(tmp_path / "stderr")
    assert same(tmp_path / "run/harmonizer.safetensors", results / "harmonizer/harmonizer.safetensors")


def test_two_processes_go_on_to_the_same_weights(dataset, results, tmp_path):
    def both(output, die):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        processes = [
            runs.start(
                arguments("harmonizer", dataset, results, output, "--batch-size", "1"),
                tmp_path / f"stderr{rank}",
                die,
                ACCELERATE_USE_CPU="true",
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
            for rank in range(2)
        ]
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    assert both(tmp_path / "whole", "") == [0, 0], read(tmp_path / "stderr0")
    assert both(tmp_path / "broken", "before 3") == [-9, -9]
    assert both(tmp_path / "broken", "") == [0, 0], read(tmp_path / "stderr0")
    assert same(tmp_path / "whole/harmonizer.safetensors", tmp_path / "broken/harmonizer.safetensors")
    steps = [step for step, _ in runs.losses(tmp_path / "whole")]
    assert steps == [1, 2, 3, 4]  # one process logs


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(dataset, results, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(results / "refiner/checkpoint-2", output / "checkpoint-2")
    limit = (output / "checkpoint-2" / FILE).stat().st_size // 2
    assert runs.run(arguments("refiner", dataset, results, output), tmp_path / "stderr", file_limit=limit) == 2
    message = [line for line in read(tmp_path / "stderr").splitlines() if line.startswith("error: ")]
    assert len(message) == 1 and FILE in message[0] and "Make room" in message[0], read(tmp_path / "stderr")
    assert "Traceback" not in read(tmp_path / "stderr")
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-2", "logs"]
    assert runs.run(arguments("refiner", dataset, results, output), tmp_path / "stderr") == 0
    assert same(output / "diffharmony.safetensors", results / "refiner/diffharmony.safetensors")


def test_a_full_disk_at_a_sample_sheet_is_one_line_too(dataset, tmp_path):
    seldom = {"sample_every": 1, "checkpoint_every": 100, "log_every": 100}
    command = runs.autoencoder(dataset, output=tmp_path / "run", **seldom)
    assert runs.run(command, tmp_path / "stderr", file_limit=1500) == 2
    message = [line for line in read(tmp_path / "stderr").splitlines() if "it/s" not in line and line.strip()]
    assert len(message) == 1 and message[0].startswith("error: No room on the disk") and "samples" in message[0]
    assert not list((tmp_path / "run/samples").iterdir())


class Payload:
    """Pickled, it is a call of os.mkdir."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("layout", ["old", "new"])
def test_nothing_is_unpickled(dataset, results, tmp_path, layout):
    output, ran = tmp_path / "run", tmp_path / "ran"
    (output / "checkpoint-2").mkdir(parents=True)
    if layout == "new":
        shutil.copy(results / "harmonizer/checkpoint-2" / FILE, output / "checkpoint-2" / FILE)
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "scaler.pt", "random_states_0.pkl", "pytorch_model.bin"):
        (output / "checkpoint-2" / name).write_bytes(pickle.dumps(Payload(ran)))
    code = runs.run(arguments("harmonizer", dataset, results, output), tmp_path / "stderr")
    assert code == {"old": 2, "new": 0}[layout]
    assert not ran.exists()
    if layout == "old":
        lines = read(tmp_path / "stderr").splitlines()
        assert len(lines) == 1 and f"holds no {FILE}" in lines[0]


def test_nothing_in_the_trainers_could_unpickle():
    """Neither by themselves nor through accelerate, which pickles what it is told to keep."""
    sources = sorted(Path(training.__file__).parent.glob("*.py"))
    assert len(sources) > 5
    words = r"\bpickle\b|torch\.load\b(?!.*weights_only=True)|\bload_state\(|register_for_checkpointing|np\.load\b"
    assert not [path.name for path in sources if re.search(words, path.read_text())]


def test_a_finished_run_only_writes_its_result_again(dataset, results, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(results / "autoencoder/checkpoint-4", output / "checkpoint-4")
    assert runs.run(arguments("autoencoder", dataset, results, output), tmp_path / "stderr") == 0
    assert same(output / "vae.safetensors", results / "autoencoder/vae.safetensors")
    assert not runs.losses(output)


@pytest.mark.parametrize(
    "settings, words",
    [({"widths": [16] * 4}, "now"), ({"layers": 2}, "lacks"), ({"ema_decay": 0}, "EMA"), ({"seed": 1}, "seed 0")],
    ids=["widths", "layers", "ema_decay", "seed"],
)
def test_other_settings_are_refused(dataset, results, tmp_path, settings, words):
    output = tmp_path / "run"
    shutil.copytree(results / "harmonizer/checkpoint-2", output / "checkpoint-2")
    assert runs.run(arguments("harmonizer", dataset, results, output, **settings), tmp_path / "stderr") == 2
    lines = read(tmp_path / "stderr").splitlines()
    assert len(lines) == 1 and words in lines[0] and f"checkpoint-2/{FILE}" in lines[0]


@pytest.mark.parametrize(
    "name, option, part, words",
    [
        ("autoencoder", "--from", "vae", "weights of --from none"),
        ("harmonizer", "--vae", "vae", "VAE"),
        ("harmonizer", "--colors", "color_regressor", "colour regressor"),
        ("refiner", "--from", "unet", "stage 1"),
    ],
)
def test_other_files_are_refused(dataset, results, tmp_path, name, option, part, words):
    """A run goes on with the weights that it was begun with, wherever they lie."""
    output = tmp_path / "run"
    shutil.copytree(results / name / "checkpoint-2", output / "checkpoint-2")
    builds_on = {"vae": "autoencoder/vae", "unet": "harmonizer/harmonizer"}
    other = checkpoint.read(results / f"{builds_on.get(part, 'color_regressor/color_regressor')}.safetensors")
    next(iter(getattr(other, part).state.values())).add_(1e-3)
    checkpoint.write(other, tmp_path / "other.safetensors")
    command = arguments(name, dataset, results, output, option, tmp_path / "other.safetensors")
    assert runs.run(command, tmp_path / "stderr") == 2
    lines = [line for line in read(tmp_path / "stderr").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"was made with {words}" in lines[0] and f"checkpoint-2/{FILE}" in lines[0]
