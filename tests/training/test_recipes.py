"""Recipes and flags: each setting and each flag has its range."""

import argparse
import dataclasses
import math

import pytest
import training_runs as runs
from training_runs import refused

from diffharmony_models.__main__ import _parser
from diffharmony_models.training import (
    autoencoder,
    color_regressor,
    harmonizer,
    harmony_vae,
    recipe,
    refiner,
)

TRAINERS = {
    "train-color-regressor": color_regressor,
    "train-autoencoder": autoencoder,
    "train-harmony-vae": harmony_vae,
    "train-harmonizer": harmonizer,
    "train-refiner": refiner,
}


FLAGS = {
    "--steps": ["0", "-1", "1e3", "x", "", "1.5", "9" * 5000, "nan"],
    "--batch-size": ["0", "-1", "1000000000000"],
    "--workers": ["-1", "100000"],
    "--seed": ["-1", "1.5", str(2**63)],
}


OWN_FLAGS = {
    **dict.fromkeys(TRAINERS, FLAGS),
    "make-composites": {
        "--seed": ["-1", "x"],
        "--test-share": ["1", "2", "-0.1", "nan"],
        "--size": ["-1", "10000000"],
        "--per-mask": ["0", "-1"],
        "--workers": ["0", "-1"],
    },
}


@pytest.mark.parametrize("command", OWN_FLAGS)
def test_every_flag_has_a_range(command, tmp_path, capsys):
    """No file named here is there: a number is refused before anything is looked at."""
    required = ["--from", "none"] if command in ("train-refiner", "train-harmony-vae") else []
    place = [str(tmp_path / "run")] if command == "make-composites" else ["none", "--output", str(tmp_path / "run")]
    for option, values in OWN_FLAGS[command].items():
        for value in values:
            line = refused([command, *place, *required, option, value], capsys)
            assert f"argument {option}: " in line, (option, value, line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", OWN_FLAGS)
def test_there_are_few_flags_and_each_is_tried(command):
    parser = _parser([command])._subparsers._group_actions[0].choices[command]
    flags = {action.option_strings[0] for action in parser._actions if action.option_strings} - {"-h"}
    assert len(flags) <= 9
    words = {"--config", "--output", "--from", "--vae", "--colors"}
    words |= {"--index", "--photos", "--masks", "--unmasked"}
    assert flags - words == OWN_FLAGS[command].keys()


BAD = {
    "number": [True, "5", [5], -1e300, math.nan, math.inf],
    "numbers": [5, [], [0, 0, 0, 0], [True] * 4, ["32"] * 4, [32, 32, 32, 99999]],
    "choice": ["of no kind", 5, [], True],
    "switch": [0, 1, "true"],
    "names": ["davis", [5], 5],
}


@pytest.mark.parametrize("command", TRAINERS)
def test_every_setting_of_a_recipe_has_a_range(command, tmp_path, capsys):
    """The kind of a field is told by its default."""
    part = command.removeprefix("train-").replace("-", "_")
    for field in dataclasses.fields(TRAINERS[command].Settings):
        kind = {bool: "switch", str: "choice", type(None): "choice", tuple: "numbers"}.get(
            type(field.default), "number"
        )
        kind = {"hold_out": "names"}.get(field.name, kind)
        for value in BAD[kind]:
            with pytest.raises(argparse.ArgumentTypeError):
                field.metadata["read"](value)
        assert field.metadata["help"]
    runs.write_recipe(tmp_path / "bad.toml", part, {"warmup": -1})
    required = ["--from", "none"] if command in ("train-refiner", "train-harmony-vae") else []
    config = ["--config", str(tmp_path / "bad.toml"), "--output", str(tmp_path / "run")]
    line = refused([command, "none", *required, *config], capsys)
    assert f"bad.toml, [{part}]: warmup must be a whole number from 0" in line


@pytest.mark.parametrize("name", recipe.bundled())
def test_the_shipped_recipes_are_read(name):
    """Every table is a trainer's."""
    tables = recipe._read(recipe.RECIPES / f"{name}.toml")
    for part, table in tables.items():
        settings = TRAINERS["train-" + part.replace("_", "-")].Settings
        found = recipe.settle(settings, part, name, seed=7, steps=None)
        assert found.seed == 7 and found.steps == table["steps"]
    assert name != "small" or len(tables) == len(TRAINERS)


BAD_RECIPES = {
    "no TOML": ("text", "no recipe"),
    "another part": ("[autoencoder]\n[harmoniser]", "no part 'harmoniser'"),
    "no such part": ("[refiner]\nsteps = 5", "no table [autoencoder]; it has refiner"),
    "no table": ("autoencoder = 5", "no table [autoencoder]"),
    "unknown": ("[autoencoder]\nlearnrate = 5", "no setting 'learnrate'; known are steps, batch_size, learning_rate"),
    "a long number": ("[autoencoder]\nsteps = " + "9" * 5000, "bad.toml"),
    "deep": ("a = " + "[" * 100_000, "no recipe"),
    "no UTF-8": ("\udcff", "no recipe"),
    "gone": (None, "no recipe"),
}


@pytest.mark.parametrize("text, words", BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_a_bad_recipe_is_one_line(tmp_path, capsys, text, words):
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    arguments = ["train-autoencoder", "none", "--config", str(path), "--output", str(tmp_path / "run")]
    assert words in refused(arguments, capsys)
