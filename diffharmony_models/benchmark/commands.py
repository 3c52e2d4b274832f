"""The demo command from start to file, and importing the package."""

import statistics
import sys
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError
from .processes import PACKAGE, launch, python
from .tables import row, summary, table

DEMO_SECONDS, DEMO_MB = 20, 1500  # the bounds, on two CPU cores
IMPORT_SECONDS = 3
HEAVY = ("diffusers", "transformers", "accelerate", "torch")
EXAMPLES = Path(__file__).resolve().parents[2] / "workflows" / "pictures"

_IMPORT = f"""
import sys, time
start = time.perf_counter()
import {PACKAGE}
seconds = time.perf_counter() - start
print(seconds, *[name for name in {HEAVY} if name in sys.modules])
"""


def demo(checkpoint: Path | None, device: str, repeats: int, folder: Path) -> tuple[dict, str]:
    """Figures and table of `harmonize` on the example, with a checkpoint (None: the bundled one)."""
    composite, mask = EXAMPLES / "astronaut.jpg", EXAMPLES / "astronaut_mask.png"
    if not composite.is_file():
        raise InputError(f"{composite} is not there: the examples come with the repository, not with the package")
    result, found = folder / "demo.png", []
    command = [sys.executable, "-m", PACKAGE, "harmonize", composite, mask, result]
    command += [] if checkpoint is None else ["--checkpoint", checkpoint]
    command += [] if device == "auto" else ["--device", device]
    for _ in tqdm(range(repeats), desc="demo command", unit="run", disable=None):
        result.unlink(missing_ok=True)
        found.append(launch(command, folder))
        if not result.is_file():
            raise RuntimeError(f"{' '.join(map(str, command))} ended well but wrote no file")
    figures = {"bound_seconds": DEMO_SECONDS, "bound_mb": DEMO_MB, **summary(found)}
    rows = [row("ours", figures), ("bound, on two CPU cores", f"{DEMO_SECONDS:.1f}", f"{DEMO_MB}")]
    return figures, table((f"demo command ({composite.name}), from start to file", "seconds", "peak MB"), rows)


def importing(repeats: int) -> tuple[dict, str]:
    """Figures and table of the package's import."""
    seconds, loaded = [], []
    for _ in range(repeats):
        done = python("-c", _IMPORT)
        if done.returncode:
            raise RuntimeError(f"importing {PACKAGE} failed:\n{done.stderr}")
        first, *loaded = done.stdout.split()
        seconds.append(float(first))
    figures = {
        "seconds": statistics.median(seconds),
        "bound_seconds": IMPORT_SECONDS,
        "loaded": loaded,
        "runs": seconds,
    }
    rows: list[tuple[str, ...]] = [("median", f"{figures['seconds']:.3f}"), ("bound", f"{IMPORT_SECONDS:.3f}")]
    text = table((f"import {PACKAGE}", "seconds"), rows)
    return figures, f"{text}\n\nPulls in {', '.join(loaded) or 'none'} of {', '.join(HEAVY)}."
