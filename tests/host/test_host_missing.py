"""What a person sees in the browser where something is missing."""

import json

import pytest
from harness import ROOT, Failed
from test_host_workflows import knows

WORKFLOWS = ROOT / "workflows"


def test_a_missing_model_is_offered_when_the_workflow_is_opened(host, tab, tmp_path):
    """By the browser's own dialog, before anything runs."""
    content = (WORKFLOWS / "published_weights.json").read_text(encoding="utf-8")
    names = [model["name"] for node in json.loads(content)["nodes"] for model in node["properties"].get("models", ())]
    assert len(names) == 2
    if not knows(host, "find_the_foreground"):  # older pages name only files that they can fetch themselves
        names = [name for name in names if name != "diffharmony.safetensors"]
    for name in names:  # the harmonizer and the VAE; one at a time, for several are only counted at first
        one = json.loads(content)
        absent = f"absent-{name}"  # other tests may have laid down the one that the workflow names
        one["nodes"] = [node for node in one["nodes"] if name in node.get("widgets_values", ())]
        one["links"], one["extra"] = [], {}
        for node in one["nodes"]:
            node["inputs"], node["outputs"] = [], []
        words = json.dumps(one).replace(name, absent)
        (tmp_path / f"{absent}.json").write_text(words, encoding="utf-8")
        tab.open(tmp_path / f"{absent}.json")
        said = "\n".join(tab.complaints())
        assert absent in said, said


def test_no_mask_drawn(host, tab):
    """The node says how to draw one; the page says which node it is."""
    for name in ("astronaut.jpg", "diffharmony_cutout.png"):
        (host.input / name).write_bytes((WORKFLOWS / "pictures" / name).read_bytes())
    tab.open(WORKFLOWS / "quick_start.json")
    tab.change("LoadImage", image="astronaut.jpg")
    tab.page.evaluate(
        """() => {
            const find = (type) => app.graph.nodes.find((node) => node.type == type)
            find("LoadImage").connect(1, find("HarmonizeColors"), "mask")
        }"""
    )
    with pytest.raises(Failed, match=r"no mask is drawn.*Open in Mask Editor"):
        tab.queue()
    tab.page.wait_for_timeout(1000)
    assert any("Harmonize" in words for words in tab.complaints()), tab.complaints()
