"""How errors are told: one printable line, the file named, the traceback kept where the program is at fault."""

import logging

import pytest

from diffharmony_models import errors


@pytest.mark.parametrize(
    "error, line",
    [
        (errors.InputError("a.png is no picture"), "a.png is no picture"),
        (errors.InputError("two\n  lines"), "two lines"),
        (errors.InputError("a  b.png"), "a  b.png"),
        (errors.InputError("not\udcff UTF-8 \x1b[31m"), "not\\udcff UTF-8 \\x1b[31m"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory: a.png"),
        (OSError("only words"), "only words"),
        (OSError(), "OSError"),
        (KeyError("key"), "KeyError: 'key'"),
        (MemoryError(), "MemoryError"),
        (ValueError("of a library"), "ValueError: of a library"),
    ],
)
def test_one_line(error, line):
    assert errors.one_line(error) == line
    line.encode()


def test_the_longest_line():
    line = errors.one_line(errors.InputError("start " + "x" * 5000 + " end"))
    assert len(line) == errors.LONGEST and line.startswith("start ") and line.endswith(" end")


def test_the_traceback_of_a_fault_of_the_program_is_logged(caplog):
    logger = logging.getLogger("diffharmony_models.test")
    assert errors.reason(errors.InputError("bad picture"), logger) == "bad picture"
    assert errors.reason(OSError(5, "I/O error", "a.png"), logger) == "I/O error: a.png"
    assert not caplog.records
    try:
        raise IndexError("out of range")
    except IndexError as error:
        assert errors.reason(error, logger) == "IndexError: out of range"
    assert "Traceback" in caplog.text and "test_errors.py" in caplog.text
