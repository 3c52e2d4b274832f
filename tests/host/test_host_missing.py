"""What a person sees in the browser where something is missing."""

import json

import pytest
from harness import ROOT, Failed

WORKFLOWS = ROOT / "workflows"


def test_a_missing_model_is_offered_when_the_workflow_is_opened(tab, tmp_path):
    """By the browser's own dialog, before anything runs."""
    content = (WORKFLOWS / "published_weights.json").read_text(encoding="utf-8")
    (name,) = (model["name"] for node in json.loads(content)["nodes"] for model in node["properties"].get("models", ()))
    absent = f"absent-{name}"  # other tests may have laid down the one that the workflow names
    (tmp_path / "absent.json").write_text(content.replace(name, absent), encoding="utf-8")
    tab.open(tmp_path / "absent.json")
    said = "\n".join(tab.complaints())
    assert absent in said, said


def test_no_mask_drawn(host, tab):
    """The node says how to draw one; the page says which node it is."""
    for name in ("astronaut.jpg", "diffharmony_astronaut.png"):
        (host.input / name).write_bytes((WORKFLOWS / "pictures" / name).read_bytes())
    tab.open(WORKFLOWS / "quick_start.json")
    tab.change("LoadImage", image="astronaut.jpg")
    with pytest.raises(Failed, match=r"no mask is drawn.*Open in Mask Editor"):
        tab.queue()
    tab.page.wait_for_timeout(1000)
    assert any("Harmonize" in words for words in tab.complaints()), tab.complaints()
