"""The command line: `python -m diffharmony_models COMMAND …`.

Each command's module is imported only when it is asked for.
"""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from . import __version__
from .errors import InputError, disk_full, one_line, printable

PROGRAM = "python -m diffharmony_models"
COMMANDS = {
    "harmonize": ("cli.harmonize", "fit the pasted foreground of a picture, or of a folder of them, to its background"),
    "convert": ("cli.convert", "make one weight file of a published folder, or of another file"),
    "evaluate": ("cli.evaluate", "PSNR, MSE, fMSE and SSIM on iHarmony4 or on pairs of your own"),
    "benchmark": ("cli.benchmark", "time and memory on this machine"),
    "make-composites": ("synthesis.dataset", "build training pairs from photos and masks"),
    "statistics": ("synthesis.statistics", "say what the pairs of data sets are like, side by side"),
    "train-color-regressor": ("training.color_regressor", "train the network that says how colours must change"),
    "train-autoencoder": ("training.autoencoder", "train the VAE"),
    "train-harmony-vae": ("training.harmony_vae", "train the Harmony-VAE from a VAE"),
    "train-harmonizer": ("training.harmonizer", "train stage 1, the latent diffusion UNet"),
    "train-refiner": ("training.refiner", "train stage 2, the refinement UNet"),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(InputError(message))}; see {self.prog} --help\n")


class Notes(logging.Handler):
    """The package's log on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = {logging.INFO: "", logging.WARNING: "note: "}.get(record.levelno, "error: ")
        text = prefix + record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        tqdm.write(printable(text), file=sys.stderr)


class Terminated(KeyboardInterrupt):
    """The system asks the program to end (SIGTERM, SIGHUP). What is under way is undone as after Ctrl-C."""

    def __init__(self, number: int):
        self.number = number


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for wrong input, or what the command says; 130 when interrupted,
    143 when terminated, as the shell counts signals. A fault of the program is raised."""
    with _notes_on_stderr(), _quiet_libraries(), _signals_raised():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> int:
    args = argparse.Namespace()
    try:
        args = _parser(argv).parse_args(argv)
        return int(args.run(args) or 0)
    except SystemExit as stop:  # argparse's, after --help or a mistake
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if not (disk_full(error) or _is_of_a_given_file(error, args)):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__package__):
            raise
        print(
            f"error: this command needs the package {error.name}, which is not installed; pip install {error.name}",
            file=sys.stderr,
        )
        return 2
    except Terminated as stop:
        print("terminated", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _is_of_a_given_file(error: OSError, args: argparse.Namespace) -> bool:
    """Whether the error is about a file or folder that the command line names, or one in it, or one that it lies in."""
    if not isinstance(error.filename, (str, bytes)):
        return False
    path = Path(os.path.abspath(os.fsdecode(error.filename)))
    given = [Path(os.path.abspath(value)) for value in vars(args).values() if isinstance(value, (str, os.PathLike))]
    return any(path.is_relative_to(other) or other.is_relative_to(path) for other in given)


@contextlib.contextmanager
def _notes_on_stderr() -> Iterator[None]:
    logger = logging.getLogger(__package__)
    notes = Notes(logging.INFO)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)
        logger.propagate = propagate


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP, where nobody else handles or ignores them, raise `Terminated`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may say what a signal does
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _parser(argv: list[str]) -> Parser:
    parser = Parser(prog=PROGRAM, description="DiffHarmony: a pasted foreground in the colours of its background.")
    parser.add_argument("--version", action="version", version=f"diffharmony_models {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(
            name, help=description, description=description[0].upper() + description[1:] + "."
        )
        if argv and argv[0] == name:
            found = importlib.import_module(f".{module}", __package__)
            found.add_arguments(command)
            command.set_defaults(run=found.run)
    return parser


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps the libraries' advice off stderr, which is the user's. What the user has set stays."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def program() -> NoReturn:
    """What the shell starts, as `diffharmony` or `python -m diffharmony_models`."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where the shell has closed it
        stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal's encoding does not
    sys.exit(main())


if __name__ == "__main__":
    program()
