"""The photos that the tests make composites of."""

import json

import pytest
from drawn import photo
from PIL import Image


@pytest.fixture
def index(tmp_path):
    """Twelve photos of six scenes with a mask each, and four photos without."""
    (tmp_path / "in").mkdir()
    rows, bare = [], []
    for number in range(16):
        picture, mask = photo(number)
        Image.fromarray(picture).save(tmp_path / "in" / f"photo_{number}.png")
        if number >= 12:
            bare.append({"image": f"photo_{number}.png", "source": "bare_ones"})
            continue
        Image.fromarray(mask).save(tmp_path / "in" / f"photo_{number}_m.png")
        rows.append(
            {
                "image": f"photo_{number}.png",
                "mask": f"photo_{number}_m.png",
                "source": "drawn",
                "group": f"scene{number // 2}",
                "label": "disc",
                "licence": "CC0",
            }
        )
    for name, lines in (("index.jsonl", rows), ("unmasked.jsonl", bare)):
        (tmp_path / "in" / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return tmp_path / "in" / "index.jsonl"
