"""The pack in the host: loaded by the host's own loader, with the nodes as they are documented, and light."""

import json

import pytest
from harness import PACK, ROOT

# id: required inputs, optional inputs, outputs. The ids are API, so are the names of the inputs.
NODES = {
    "LoadDiffHarmony": (
        ["checkpoint", "weight_dtype"],
        ["clip"],
        ["MODEL", "VAE", "CONDITIONING", "DIFFHARMONY_REFINER"],
    ),
    "HarmonizeColors": (
        ["composite", "mask", "weights", "strength", "light", "color", "local", "feather", "frames"],
        [],
        ["IMAGE", "DIFFHARMONY_COLORS"],
    ),
    "HarmonizeLatent": (
        [
            "model",
            "vae",
            "null_text",
            "composite",
            "mask",
            "seed",
            "steps",
            "sampler_name",
            "scheduler",
            "resolution",
            "shape",
        ],
        ["latent", "fixed_noise"],
        ["LATENT"],
    ),
    "VAEDecodeHigherRes": (["samples", "vae", "method"], ["composite"], ["IMAGE"]),
    "RefineResidual": (
        ["refiner", "harmonized", "composite", "mask", "strength", "keep_background", "feather"],
        [],
        ["IMAGE"],
    ),
    "TransferToFullResolution": (
        ["harmonized", "composite", "mask", "radius", "detail", "feather"],
        ["strength", "light", "color", "align"],
        ["IMAGE", "DIFFHARMONY_COLORS"],
    ),
    "DiffHarmonyConditioning": (
        ["vae", "null_text", "composite", "mask", "resolution", "shape"],
        [],
        ["CONDITIONING", "CONDITIONING", "LATENT"],
    ),
    "HarmonizeCrop": (["composite", "mask", "context", "size"], [], ["IMAGE", "MASK", "DIFFHARMONY_CROP"]),
    "HarmonizeStitch": (["crop", "harmonized"], [], ["IMAGE"]),
    "SaveColorLUT": (["colors", "filename_prefix"], [], []),
}
DEFAULTS = {
    ("HarmonizeLatent", "steps"): 0,
    ("HarmonizeLatent", "sampler_name"): "euler_ancestral",
    ("HarmonizeLatent", "scheduler"): "normal",
    ("HarmonizeLatent", "resolution"): 0,
    ("HarmonizeColors", "strength"): 1.0,
    ("HarmonizeColors", "feather"): 0,
    ("HarmonizeColors", "frames"): "each alone",
    ("HarmonizeCrop", "context"): 2.0,
    ("HarmonizeCrop", "size"): 0,
    ("RefineResidual", "strength"): 1.0,
    ("RefineResidual", "keep_background"): True,
    ("RefineResidual", "feather"): 0,
}
LOADING = """
import asyncio, json, sys
sys.path.insert(0, "."); sys.argv = ["main.py", "--cpu"]; pack = "PACK"
import comfy.options; comfy.options.enable_args_parsing()
import nodes, folder_paths
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
before, known, keys = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS), set(folder_paths.folder_names_and_paths)
loaded = asyncio.run(nodes.load_custom_node(pack, module_parent="custom_nodes"))
print(json.dumps({
    "loaded": loaded,
    "nodes": sorted(set(nodes.NODE_CLASS_MAPPINGS) - known),
    "modules": sorted(set(sys.modules) - before),
    "folders": sorted(set(folder_paths.folder_names_and_paths) - keys),
    "python modules": sorted(
        {nodes.NODE_CLASS_MAPPINGS[n].RELATIVE_PYTHON_MODULE for n in set(nodes.NODE_CLASS_MAPPINGS) - known}
    ),
}))
"""


@pytest.fixture(scope="module")
def loading(host):
    return json.loads(host.script(LOADING.replace("PACK", str(ROOT))).splitlines()[-1])


def test_the_hosts_own_loader_takes_the_pack(loading):
    assert loading["loaded"] is True
    assert loading["nodes"] == sorted(NODES)
    assert loading["folders"] == ["diffharmony"]


def test_loading_pulls_in_none_of_the_heavy_packages(loading):
    packages = {name.split(".")[0] for name in loading["modules"]}
    assert not packages & {"diffusers", "accelerate", "transformers"}


def test_the_server_started_with_the_pack(host):
    log = host.said()
    assert "IMPORT FAILED" not in log and "Error while calling comfy_entrypoint" not in log
    assert f"custom_nodes/{PACK}" in log.replace("\\", "/")


@pytest.mark.parametrize("name", NODES)
def test_the_nodes_are_as_documented(host, name):
    required, optional, outputs = NODES[name]
    info = host.get(f"/object_info/{name}")[name]
    assert info["python_module"] == f"custom_nodes.{PACK}"
    assert set(required) <= set(info["input"]["required"])
    assert set(optional) <= set(info["input"].get("optional", {}))
    assert info["output"] == outputs


@pytest.mark.parametrize("name", NODES)
def test_everything_is_explained(host, name):
    info = host.get(f"/object_info/{name}")[name]
    assert info["category"] == "DiffHarmony" and info["description"] and info["display_name"] != ""
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    assert not [key for key, spec in inputs.items() if len(spec) < 2 or not spec[1].get("tooltip")]
    numbers = [spec[1] for spec in inputs.values() if spec[0] in ("INT", "FLOAT")]
    assert all(number["min"] < number["max"] for number in numbers)


def test_the_defaults_are_the_published_method(host):
    found = {}
    for name, key in DEFAULTS:
        found[name, key] = host.get(f"/object_info/{name}")[name]["input"]["required"][key][1]["default"]
    assert found == DEFAULTS
