"""The program itself: signals, exit codes, what it loads."""

import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from command_line import HEIGHT, ROOT, WIDTH, command, pixels_of, python, said
from PIL import Image

from diffharmony_models.files import images

INTERRUPTED = """
import os, signal, sys
from diffharmony_models.__main__ import main

def hook(event, arguments):
    if event == "os.rename" and waiting:  # the result is written, but not yet in its place
        print(os.path.exists(arguments[0]), end=" ")
        os.kill(os.getpid(), waiting.pop())

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, and rightly so
waiting = []
sys.addaudithook(hook)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    waiting.append(number)
    print(main(sys.argv[1:]), os.listdir("out"), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_leaves_nothing_half_done(tmp_path, pair):
    (tmp_path / "out").mkdir()
    Image.new("L", (WIDTH, HEIGHT)).save(pair[1])
    done = python("-c", INTERRUPTED, "harmonize", *pair, "out/out.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 130 [] True", "True 143 [] True", "True 129 [] True"]
    said = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert said == ["interrupted", "terminated", "terminated"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_make_composites_ends_with_its_workers(tmp_path):
    """Ctrl-C reaches the workers, too."""
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    pixels = np.random.default_rng(0).integers(40, 200, (300, 400, 3), dtype=np.uint8)
    mask = np.zeros((300, 400), np.uint8)
    mask[50:250, 100:300] = 255
    for place in range(24):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{place}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{place}.png")
    arguments = ["make-composites", "out", "--photos", "photos", "--masks", "masks", "--workers", "2", "--size", "120"]
    child = subprocess.Popen(
        [sys.executable, "-m", "diffharmony_models", *arguments, "--per-mask", "50"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 100
        while not list(tmp_path.glob("out/*/composite_images/*.jpg")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)
        errors = child.communicate(timeout=100)[1]
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert list(tmp_path.glob("out/own/composite_images/*.jpg")) and not list(tmp_path.glob("out/**/.*.part"))


def test_main_leaves_the_process_as_it_was(capsys):
    before = list(warnings.filters), signal.getsignal(signal.SIGTERM)
    assert command("--version") == 0
    assert (list(warnings.filters), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError(5, "I/O error"), FileNotFoundError(2, "No such file", "/nowhere/else")]
)
def test_a_fault_of_the_program_keeps_its_traceback(pair, tmp_path, weights, capsys, monkeypatch, error):
    def broken(path):
        raise error

    monkeypatch.setattr(images, "read_mask", broken)
    with pytest.raises(type(error)) as caught:
        command("harmonize", *pair, tmp_path / "out.png", "--checkpoint", weights)
    assert caught.value is error and said(capsys) == ""


@pytest.mark.slow
def test_a_fault_of_the_program_is_exit_code_1(tmp_path, pair):
    code = (
        "import sys; from diffharmony_models import __main__; from diffharmony_models.files import images;"
        "images.read_mask = None;"
        "sys.exit(__main__.main(sys.argv[1:]))"
    )
    done = python("-c", code, "harmonize", *pair, "out.png", cwd=tmp_path)
    assert done.returncode == 1 and "TypeError: 'NoneType' object is not callable" in done.stderr
    assert "Traceback" in done.stderr and not (tmp_path / "out.png").exists()


@pytest.mark.slow
def test_the_program_harmonizes_and_says_only_that(tmp_path, pair, weights):
    done = python("-m", "diffharmony_models", "harmonize", *pair, "out.png", "--checkpoint", weights, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("out.png written")
    assert pixels_of(tmp_path / "out.png").shape == (HEIGHT, WIDTH, 3)
    bad = python("-m", "diffharmony_models", "harmonize", pair[0], pair[1], "out.gif", cwd=tmp_path)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_help_loads_nothing_heavy_and_harmonizing_no_pipelines(tmp_path, pair, weights):
    code = (
        "import sys; from diffharmony_models.__main__ import main; main(sys.argv[1:])\n"
        "heavy = ('torch', 'numpy', 'diffusers', 'transformers', 'diffusers.pipelines.stable_diffusion')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert python("-c", code, "--help", cwd=tmp_path).stdout.endswith("\n[]\n")
    loaded = python("-c", code, "harmonize", *pair, "out.png", "--checkpoint", weights, cwd=tmp_path).stdout
    assert "'diffusers'" in loaded and "stable_diffusion" not in loaded


@pytest.mark.slow
def test_colors_alone_import_nothing_heavy(tmp_path):
    """With the bundled weights a picture takes a second, because diffusers is not loaded for it."""
    pictures = ROOT / "workflows" / "pictures"
    arguments = ["harmonize", str(pictures / "astronaut.jpg"), str(pictures / "astronaut_mask.png"), "out.png"]
    code = (
        "import sys; from diffharmony_models.__main__ import main; "
        f"assert main({arguments!r}) == 0; "
        "print([name for name in ('diffusers', 'transformers', 'accelerate') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]" and (tmp_path / "out.png").stat().st_size > 10_000
