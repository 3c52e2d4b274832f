"""What a person sees in the browser where something is missing."""

import json

import pytest
from harness import ROOT, Failed

WORKFLOWS = ROOT / "workflows"


def test_a_missing_model_is_offered_when_the_workflow_is_opened(host, tab):
    """By the browser's own dialog, before anything runs."""
    workflow = json.loads((WORKFLOWS / "published_weights.json").read_text(encoding="utf-8"))
    models = [model for node in workflow["nodes"] for model in node["properties"].get("models", ())]
    wanted = [model["name"] for model in models if not list(host.models.rglob(model["name"]))]
    assert wanted
    tab.open(WORKFLOWS / "published_weights.json")
    said = "\n".join(tab.complaints())
    assert all(name in said for name in wanted), said


def test_no_mask_drawn(host, tab):
    """The node says how to draw one; the page says which node it is."""
    for name in ("astronaut.jpg", "diffharmony_astronaut.png"):
        (host.input / name).write_bytes((WORKFLOWS / "pictures" / name).read_bytes())
    tab.open(WORKFLOWS / "quick_start.json")
    tab.change("LoadImage", image="astronaut.jpg")
    with pytest.raises(Failed, match="no mask is drawn.*Open in Mask Editor"):
        tab.queue()
    tab.page.wait_for_timeout(1000)
    assert any("Harmonize" in words for words in tab.complaints()), tab.complaints()
