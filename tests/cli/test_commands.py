"""The other commands, and what all of them say of themselves."""

import pytest
import torch
from command_line import command, refused
from safetensors.torch import load_file

from diffharmony_models import __version__
from diffharmony_models.__main__ import COMMANDS, PROGRAM, _parser


def test_convert_says_what_it_found(tmp_path, weights, capsys):
    assert command("convert", weights, tmp_path / "half.safetensors", "--dtype", "fp16") == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("resolution 64", "float16", "9 channels", "8/8/8/8", "MB"))
    assert {tensor.dtype for key, tensor in load_file(tmp_path / "half.safetensors").items() if key != "null_text"} == {
        torch.float16
    }


@pytest.mark.parametrize(
    "arguments, words",
    [
        (lambda folder, weights: [folder / "gone", folder / "o.safetensors"], "gone"),
        (lambda folder, weights: [weights, folder / "o.bin"], ".safetensors"),
        (lambda folder, weights: [weights, folder / "o.safetensors", "--dtype", "int4"], "bfloat16"),
        (lambda folder, weights: [weights, weights], "over its source"),
        (lambda folder, weights: [weights], "OUT"),
    ],
)
def test_convert_refuses(tmp_path, weights, capsys, arguments, words):
    assert words in refused(capsys, "convert", *arguments(tmp_path, weights))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "arguments are required: COMMAND"),
        (["paint"], "argument COMMAND: invalid choice: 'paint' (choose from"),
        (["--paint"], "arguments are required: COMMAND"),
        (["harmonise", "--help"], "invalid choice: 'harmonise'"),
    ],
)
def test_unknown_commands(capsys, argv, words):
    text = refused(capsys, *argv)
    assert words in text and f"see {PROGRAM} --help" in text


def test_version_and_help(capsys):
    assert command("--version") == 0
    assert __version__ in capsys.readouterr().out
    assert command("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys, name):
    assert command(name, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: {PROGRAM} {name} ") and COMMANDS[name][1][1:] in text
    parser = _parser([name])._subparsers._group_actions[0].choices[name]
    assert len(parser._actions) >= 2
    for action in parser._actions:
        assert action.help and all(name in text for name in action.option_strings or [action.metavar or action.dest])
        explained = " ".join((action.help % {"default": action.default}).split())
        assert explained[:40] in text.replace("- ", "-"), f"{name}: {action.dest} is not explained"
