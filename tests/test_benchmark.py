"""The `benchmark` command at tiny width: what it prints and writes, and that both loops are the same method.

Nothing here is timed.
"""

import json
import subprocess
import sys
import time

import pytest
import torch

from diffharmony_models import checkpoint
from diffharmony_models.__main__ import main
from diffharmony_models.benchmark import loops
from diffharmony_models.benchmark import runs as benchmark
from diffharmony_models.networks.refiner import Refiner
from diffharmony_models.pipeline import DiffHarmony
from diffharmony_models.settings import Settings

pytestmark = pytest.mark.slow

WIDTHS = (32, 64, 64, 64)


@pytest.fixture(scope="module")
def tiny():
    return loops.random_checkpoint(WIDTHS, WIDTHS)


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell."""
    cells = [
        [cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {first: rest for first, *rest in cells}


def test_the_published_shape():
    unet, vae = loops.networks(loops.UNET_WIDTHS, loops.VAE_WIDTHS)
    millions = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (unet, vae)]
    assert millions == pytest.approx([859.5, 83.7], abs=0.1)  # SD 1.5 inpainting's


def test_random_weights_fit_and_differ(tiny):
    unet = tiny.unet.state
    assert tiny.unet.config["in_channels"] == 9 and tiny.vae.config["layers_per_block"] == 2
    assert unet["conv_norm_out.weight"].eq(1).all() and unet["conv_norm_out.bias"].eq(0).all()
    assert unet["mid_block.resnets.0.conv1.weight"].std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.05)
    engine = DiffHarmony.from_checkpoint(tiny, dtype=torch.float32)
    image = engine.decode(torch.randn(1, 4, 8, 8))
    assert image.std() > 0.05  # a flat picture would hide every difference


@pytest.mark.parametrize("steps", [2, 5])
def test_the_plain_loop_is_the_same_method(tiny, steps):
    engine = DiffHarmony.from_checkpoint(tiny, dtype=torch.float32)
    composite, mask = torch.rand(1, 3, 64, 128), torch.zeros(1, 1, 64, 128)
    mask[..., 16:40, 24:96] = 1
    seeded = lambda seed=0: torch.Generator().manual_seed(seed)  # noqa: E731
    plain = loops.plain_loop(engine.vae, engine.unet, engine.null_text[None], composite, mask, steps, seeded())

    def ours(seed: int) -> torch.Tensor:
        settings = Settings(resolution=90, steps=steps)
        return engine.decode(engine.harmonize_latents(composite, mask, settings, generator=seeded(seed)))

    assert plain.shape == composite.shape
    assert benchmark._decibels(ours(0), plain) >= 50
    assert benchmark._decibels(ours(1), plain) < 40  # other noise shows


def test_full_size_part(capsys):
    settings = benchmark.Settings("full", "cpu", 1, 2, resolution=64, dtype=torch.bfloat16, widths=WIDTHS)
    found = benchmark.run(settings)["full"]
    printed = capsys.readouterr().out
    table = rows(printed)
    for kind in ("float32", "bfloat16"):
        assert found[kind]["ratio_seconds"] > 0
        assert found[kind]["ratio_seconds"] == pytest.approx(
            found[kind]["ours"]["seconds"] / found[kind]["plain"]["seconds"]
        )
        for loop, name in (("ours", f"ours, {kind}"), ("plain", f"plain diffusers loop, {kind}")):
            assert found[kind][loop]["seconds"] > 0 and len(found[kind][loop]["runs_seconds"]) == 1
            assert float(table[name][0]) == pytest.approx(found[kind][loop]["seconds"], abs=0.06)
            if sys.platform != "win32":
                assert found[kind][loop]["peak_mb"] > 50
                assert float(table[name][1]) == pytest.approx(found[kind][loop]["peak_mb"], abs=0.6)
        if sys.platform != "win32":
            assert 0.5 < found[kind]["ratio_peak"] < 2
    assert "ours / plain, float32** (bound 1.00)" in printed and "ours / plain, bfloat16" in printed
    assert found["agreement_db"] >= 50
    assert 10 < found["cost_db"] < found["agreement_db"]
    assert f"agree in float32 to {found['agreement_db']:.1f} dB" in printed


def test_demo_and_its_checkpoint(tiny, tmp_path, capsys):
    torch.manual_seed(0)
    whole = checkpoint.Checkpoint("tiny", tiny.unet, tiny.vae, null_text=tiny.null_text, resolution=64)
    whole.refiner = checkpoint.part_from(Refiner(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4))
    weights = tmp_path / "tiny.safetensors"
    checkpoint.write(whole, weights)
    found = benchmark.run(benchmark.Settings("demo", "cpu", 1, checkpoint=weights))["demo"]
    table = rows(capsys.readouterr().out)
    assert table["bound, on two CPU cores"] == ["20.0", "1500"]
    assert found["seconds"] > 0 and float(table["ours"][0]) == pytest.approx(found["seconds"], abs=0.06)
    assert sys.platform == "win32" or found["peak_mb"] > 100


def test_import_part(capsys):
    start = time.perf_counter()
    found = benchmark.run(benchmark.Settings("import", repeats=1))["import"]
    whole, printed = time.perf_counter() - start, capsys.readouterr().out
    assert 0 < found["seconds"] < whole and found["loaded"] == []
    assert rows(printed)["median"] == [f"{found['seconds']:.3f}"] and rows(printed)["bound"] == ["3.000"]
    assert "Pulls in none of" in printed


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no peak memory")
def test_memory_is_that_of_the_command_alone(tmp_path):
    hold = torch.ones(100_000_000)  # 400 MB that are this process's, not the command's
    found = benchmark._launch([sys.executable, "-S", "-c", "x = b'x' * 50_000_000"], tmp_path)
    assert hold[-1] == 1
    assert 50e6 < found["peak"] < 150e6
    assert found["seconds"] > 0 and found["code"] == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can measure anew")
def test_memory_of_the_work_leaves_out_what_was_freed_before():
    code = (
        "import torch; from diffharmony_models.benchmark import loops as b; cpu = torch.device('cpu')\n"
        "x = torch.ones(50_000_000); del x; before = b.peak_bytes(cpu); told = b.reset_peak(cpu)\n"
        "print(before, b.peak_bytes(cpu), 'during' in told)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=benchmark._environment(), capture_output=True, text=True, check=True
    )
    before, after, anew = done.stdout.split()
    if anew == "False":
        pytest.skip("this system does not let a process reset its peak")
    assert int(before) - int(after) > 150e6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "speed"], "choose from"),
        (["--repeats", "0"], "from 1"),
        (["--steps", "1"], "from 2"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--only", "host"], "needs --comfyui"),
        (["--comfyui", "."], "no main.py"),
    ],
)
def test_bad_input_is_told_in_one_line(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_a_command_that_fails_speaks_for_itself(tmp_path):
    missing = tmp_path / "missing.png"
    with pytest.raises(ValueError, match=r"harmonize.* failed: .*missing\.png"):
        benchmark._launch(
            [sys.executable, "-m", "diffharmony_models", "harmonize", missing, missing, tmp_path / "out.png"], tmp_path
        )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_is_killed_is_told(tmp_path):
    with pytest.raises(ValueError, match="signal 9, most likely for want of memory"):
        benchmark._launch([sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path)


def test_weights_that_cannot_be_read_are_told(tmp_path):
    task = {
        "loop": "ours",
        "path": str(tmp_path / "none.safetensors"),
        "dtype": "float32",
        "device": "cpu",
        "resolution": 64,
        "steps": 1,
    }
    (tmp_path / "task.json").write_text(json.dumps({**task, "report": str(tmp_path / "work.json")}))
    loops.main(str(tmp_path / "task.json"))
    assert "none.safetensors" in json.loads((tmp_path / "work.json").read_text())["error"]
