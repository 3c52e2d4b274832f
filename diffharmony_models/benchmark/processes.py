"""Processes that are measured, each started for one figure, so that neither memory nor warmth is handed on."""

import json
import os
import subprocess
import sys
from pathlib import Path

from ..errors import InputError

PACKAGE = "diffharmony_models"

# Runs a command and notes its time and memory. A process of its own, and a small one: on Linux a new process starts
# with the peak memory of the one that started it. ru_maxrss is in bytes on macOS, in kilobytes elsewhere; Windows has
# none.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.monotonic()
child = subprocess.Popen(sys.argv[2:])
if hasattr(os, "wait4"):
    _, status, usage = os.wait4(child.pid, 0)
    code, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
else:
    code, peak = child.wait(), None
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "seconds": time.monotonic() - start, "peak": peak}, file)
"""


def launch(command: list, folder: Path) -> dict:
    """Runs a command; its seconds and its peak memory in bytes (None where the system does not tell)."""
    report, words = folder / "launch.json", f"`python {' '.join(map(str, command[1:]))}`"
    done = python("-S", "-c", _LAUNCHER, report, *command)
    if done.returncode:
        raise RuntimeError(f"{words} could not be started:\n{done.stderr}")
    found = json.loads(report.read_text())
    raise_if_killed(found["code"])
    if found["code"] not in (0, 2):
        raise RuntimeError(f"{words} failed:\n{done.stderr}")
    if found["code"]:  # the input's fault
        raise InputError(f"{words} failed: {last_line(done.stderr).removeprefix('error: ')}")
    return found


def python(*arguments: object) -> subprocess.CompletedProcess:
    """Runs this Python, with this very package to be found first."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


def raise_if_killed(code: int) -> None:
    if code < 0:
        raise InputError(
            f"a measured process was stopped by signal {-code}, most likely for want of memory; "
            "free some, or give a smaller --resolution"
        )


def last_line(text: str) -> str:
    """What a command said last, which is where it names its error."""
    return (text.strip().splitlines() or ["(no output)"])[-1]
