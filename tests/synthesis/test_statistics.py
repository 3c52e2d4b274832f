"""`statistics` on pairs whose numbers are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import training_runs as runs
from PIL import Image

from diffharmony_models.__main__ import main
from diffharmony_models.synthesis.statistics import COLUMNS


def make(root: Path, pasted: tuple[int, int, int], true: tuple[int, int, int], kinds: tuple[str, ...] = ()) -> Path:
    """Two pairs of flat colours: a background of grey 100 and of grey 160, a foreground on a quarter of the picture."""
    names = []
    for folder in ("composite_images", "masks", "real_images"):
        (root / "Flat" / folder).mkdir(parents=True)
    for number, grey in enumerate((100, 160)):
        mask = np.zeros((256, 256), np.uint8)
        mask[64:192, 64:192] = 255
        for folder, name, foreground in (
            ("composite_images", f"a{number}_1_1", pasted),
            ("real_images", f"a{number}", true),
        ):
            picture = np.full((256, 256, 3), grey, np.uint8)
            picture[mask > 0] = foreground
            Image.fromarray(picture).save(root / "Flat" / folder / f"{name}.png")
        Image.fromarray(mask).save(root / f"Flat/masks/a{number}_1.png")
        names.append(f"Flat/composite_images/a{number}_1_1.png")
    (root / "IHD_test.txt").write_text("\n".join(names))
    rows = [{"composite": name, "label": None, "kind": kind} for name, kind in zip(names, kinds, strict=False)]
    if rows:
        (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def table(capsys, *arguments: object) -> dict[str, dict[str, str]]:
    """{row: {column: cell}}; of columns of one name the first."""
    assert main(["statistics", *map(str, arguments)]) == 0
    head, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    )
    assert head[1:] == list(COLUMNS)
    return {line[0]: dict(reversed(list(zip(head[1:], line[1:], strict=True)))) for line in lines}


def test_numbers(tmp_path, capsys):
    found = table(capsys, make(tmp_path / "data", pasted=(130, 130, 130), true=(160, 130, 100)))["data"]
    assert found["pairs"] == "2" and found["foreground's share"] == "25.0%"
    assert float(found["composite: foreground - background"]) == pytest.approx(30 / 255, abs=1e-3)
    # 60, 30, 0 from the one background, 0, 30, 60 from the other
    assert float(found["real: foreground - background"]) == pytest.approx(30 / 255, abs=1e-3)
    assert found["composite: correlation"] == "-"  # always the same colour
    assert float(found["fMSE: mean"]) == 600 and float(found["PSNR: mean"]) == pytest.approx(26.4, abs=0.05)
    assert (found["real more saturated"], found["less"]) == ("100%", "0%")


def test_data_sets_and_kinds_side_by_side(tmp_path, capsys):
    same = make(tmp_path / "same", (160, 130, 100), (160, 130, 100))
    dull = make(tmp_path / "dull", (160, 130, 100), (130, 130, 130), kinds=("look", "dull"))
    found = table(capsys, same, dull)
    assert list(found) == ["same", "dull", "dull, dull", "dull, look"]
    assert found["dull, look"]["pairs"] == "1" and found["dull, look"]["less"] == "100%"
    assert found["same"]["fMSE: mean"] == "0" and found["same"]["less"] == "0%"


def test_bad_input_is_one_line(tmp_path, capsys):
    empty = runs.make_dataset(tmp_path / "empty", mask=0)
    for arguments, words in (
        (["none"], "No data set folder none"),
        ([empty], "No list IHD_test.txt"),
        ([empty / "IHD_train.txt"], "has a foreground and a background"),
    ):
        assert main(["statistics", *map(str, arguments)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and words in lines[0]
