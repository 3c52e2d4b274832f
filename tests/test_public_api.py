"""What `import diffharmony_models` gives: light, complete, and as the README shows it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffharmony_models

ROOT = Path(__file__).resolve().parent.parent


def test_every_public_name_is_there_and_unknown_ones_are_not():
    for name in diffharmony_models.__all__:
        assert getattr(diffharmony_models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        _ = diffharmony_models.paint


def test_importing_the_package_does_not_import_torch():
    code = "import sys, diffharmony_models; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert code.count("\n") <= 10
    pictures = ROOT / "workflows" / "pictures"
    shutil.copy(pictures / "astronaut.jpg", tmp_path / "composite.jpg")
    shutil.copy(pictures / "astronaut_mask.png", tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    before, after, mask = (np.asarray(Image.open(name)) for name in ("composite.jpg", "harmonized.png", "mask.png"))
    assert np.array_equal(before[mask == 0], after[mask == 0]) and (before != after)[mask > 0].mean() > 0.5
