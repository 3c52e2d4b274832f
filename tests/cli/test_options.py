"""How many options the commands have, that their help is short, and that none is ignored without a word."""

import argparse

import pytest
from command_line import command, refused

from diffharmony_models.__main__ import COMMANDS, _parser

MOST = 85
LINES, COLUMNS = 50, 120


def options(name: str) -> list[str]:
    """The options of a command; --keep-background and --no-keep-background are one."""
    parser = _parser([name])._subparsers._group_actions[0].choices[name]
    return [
        action.option_strings[0]
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    ]


def test_all_commands_together_have_few_options():
    found = {name: options(name) for name in COMMANDS}
    assert sum(map(len, found.values())) <= MOST, {name: len(each) for name, each in found.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_fits_a_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert command(name, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--method colors --steps 2", "--steps: the method colors"),
        ("--method colors --dtype float32", "--dtype: the method colors"),
        ("--method colors --ending paper --seed 1", "--seed and --ending: the method colors"),
        ("--method diffusion --local 0.5", "--local: the method diffusion"),
        ("--method diffusion --ending paper --radius 3", "--radius: the ending paper"),
        ("--method both --ending none --detail 0", "--detail: the ending none"),
        ("--method both --no-keep-background", "--keep-background: the ending transfer"),
        ("--method diffusion --ending none --no-keep-background --feather 2", "--feather: without the background"),
        ("--overwrite", "--overwrite: one picture"),
    ],
)
def test_an_option_without_use_is_refused(pair, tmp_path, capsys, given, words):
    assert words in refused(capsys, "harmonize", *pair, tmp_path / "out.png", *given.split())
    assert not (tmp_path / "out.png").exists()


def test_so_is_one_that_the_default_method_has_no_use_for(pair, tmp_path, weights, capsys):
    """With the bundled weights that is colors, with weights without a regressor diffusion."""
    assert "the method colors" in refused(capsys, "harmonize", *pair, tmp_path / "out.png", "--steps", 2)
    text = refused(capsys, "harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights, "--local", 1)
    assert "the method diffusion" in text
