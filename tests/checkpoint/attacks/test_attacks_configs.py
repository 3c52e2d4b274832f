"""Configs, indices and metadata that say what they must not."""

import json

import pytest
import torch
from attacking import JSON, SAID, one_file, refused
from safetensors.torch import save_file
from support import FOLDERS, WEIGHTS

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import PARTS, Checkpoint, Part, configs
from diffharmony_models.errors import InputError


def test_the_folder_is_read_as_long_as_nothing_is_done_to_it(root, parts):
    whole = checkpoints.read(root)
    assert all(getattr(whole, kind).state.keys() == parts[kind].state.keys() for kind in set(PARTS) & set(parts))
    assert whole.null_text.shape == (77, 8)


@pytest.mark.parametrize("kind", SAID)
def test_a_config_that_says_what_it_must_not(kind, root):
    config = root / FOLDERS[kind] / "config.json"
    content = json.loads(config.read_text())
    for change in SAID[kind]:
        config.write_text(json.dumps(content | change))
        try:
            message = refused(config.parent)
        except BaseException:
            print(f"{kind} with {str(change)[:200]}")
            raise
        assert any(key in message for key in change) or "tensors do not fit" in message, (change, message)


@pytest.mark.parametrize("kind", [kind for kind in SAID if kind != "text_encoder"])
def test_the_same_in_a_one_file_checkpoint_and_in_a_part_made_by_hand(kind, root, parts):
    """The same gate; a few of each, for each is another 100 reads."""
    path = root / "one.safetensors"
    part = parts[kind]
    for change in SAID[kind][::5]:
        config = part.config | change
        state = {f"{kind}.{key}": value.clone() for key, value in part.state.items()}
        save_file(state, path, {"format": "diffharmony", kind: json.dumps(config)})
        refused(path)
        with pytest.raises(InputError):
            getattr(checkpoints, f"build_{kind}")(Part(config, part.state))
        with pytest.raises(InputError):
            checkpoints.write(Checkpoint("x", **{kind: Part(config, part.state)}), root / "out.safetensors")


def test_unknown_keys_do_not_get_through(root):
    folder = root / FOLDERS["text_encoder"]
    evil = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "_experts_implementation": "evil/kernel",
        "auto_map": {"AutoModel": "evil--code.Model"},
        "quantization_config": {"quant_method": "evil"},
        "torch_dtype": "evil",
        "dtype": 5,
        "id2label": 5,
        "output_hidden_states": True,
        "return_dict": False,
        "_name_or_path": "evil/repository",
    }
    expected = checkpoints.read(root).null_text
    for path, added in ((folder, evil), (root / FOLDERS["unet"], evil | {"dropout": 1e9, "_use_default_values": 5})):
        config = path / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | added))
    whole = checkpoints.read(root)
    assert torch.equal(whole.null_text, expected)
    assert not set(evil) & set(whole.unet.config) and whole.unet.config["dropout"] == 0
    assert not set(evil) & set(configs.clean("text_encoder", json.loads((folder / "config.json").read_text())))


@pytest.mark.parametrize("case", JSON)
@pytest.mark.parametrize("kind", ["unet", "text_encoder"])
def test_a_config_json_that_is_none(kind, case, root):
    folder = root / FOLDERS[kind]
    (folder / "config.json").write_bytes(JSON[case])
    refused(folder)
    with pytest.raises(InputError):
        checkpoints.read(folder / WEIGHTS)


def test_files_that_are_too_large_to_be_what_they_are_called(root):
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        path = root / "base" / name
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.exists() else b"{}"
        with open(path, "wb") as file:
            file.truncate(20_000_000_000)  # a hole: takes no room
        assert str(path) in refused(root)
        path.write_bytes(before)
    checkpoints.read(root)


MAPS = [
    5,
    [],
    {},
    {"a": 5},
    {"a": ["b"]},
    {"a": None},
    {"a": {"b": 1}},
    {"a": "../../etc/passwd"},
    {"a": "/etc/passwd"},
]
MAPS += [
    {"a": "gone.safetensors"},
    {"a": "x\0y"},
    {"a": "\ud800"},
    {"a": ""},
    {"a": "."},
    {"a": ".."},
    {"a": "x" * 5000},
]
MAPS += [{"a": "unet\\..\\x.safetensors"}, {"a": "config.json"}]


def test_an_index_of_shards_that_leads_elsewhere(root):
    folder = root / FOLDERS["refiner"]
    (folder / WEIGHTS).rename(folder / "part-00001-of-00001.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-00001-of-00001.safetensors"}}))
    assert checkpoints.read(folder).refiner
    for content in MAPS:
        index.write_text(json.dumps({"weight_map": content}))
        refused(folder)
    for content in (b"[]", b"5", b"{}", b"{", b"[" * 100_000):
        index.write_bytes(content)
        refused(folder)


SCHEDULERS = [
    '{"prediction_type": 5}',
    '{"prediction_type": ["epsilon"]}',
    '{"prediction_type": "%s"}' % ("x" * 100_000),
]
SCHEDULERS += ['{"prediction_type": null}', "[]", "[" * 100_000]


def test_a_scheduler_that_says_what_it_must_not(root):
    (root / "base" / "scheduler").mkdir()
    for content in SCHEDULERS:
        (root / "base" / "scheduler" / "scheduler_config.json").write_text(content)
        refused(root / "base", "scheduler_config.json")


METADATA = [
    {"resolution": value}
    for value in (
        "20000",
        str(10**9),
        "9" * 400,
        "9" * 5000,
        "-64",
        "63",
        "64.0",
        "1e3",
        "nan",
        "٣٢١",
        "²²²",
        "",
        " 64",
        "NaN",
    )
] + [{"prediction_type": "x" * 100_000}, {"prediction_type": "\n"}]


def test_metadata_that_says_what_it_must_not(parts, tmp_path):
    path = tmp_path / "one.safetensors"
    tensors, metadata = one_file(path, parts)
    assert checkpoints.read(path).refiner
    for change in METADATA:
        save_file(tensors, path, metadata | change)
        refused(path)
    for config in ("5", "[]", "null", "{", "[" * 100_000, '"x"', "NaN", '{"in_channels": ' + "9" * 5000 + "}"):
        save_file(tensors, path, metadata | {"refiner": config})
        refused(path)
    with pytest.raises(InputError):
        checkpoints.write(Checkpoint("x", null_text=torch.ones(1, 8), resolution=10**400), tmp_path / "out.safetensors")


NULL_TEXTS = {
    "0 dimensions": torch.ones(()),
    "no tokens": torch.ones(0, 8),
    "no width": torch.ones(8, 0),
    "many tokens": torch.ones(100_000, 1),
    "integers": torch.ones(77, 8, dtype=torch.int8),
    "booleans": torch.ones(77, 8, dtype=torch.bool),
    "float8": torch.ones(77, 8).to(torch.float8_e4m3fn),
    "complex": torch.ones(77, 8, dtype=torch.complex64),
    "three dimensions": torch.ones(1, 77, 8),
}


@pytest.mark.parametrize("case", NULL_TEXTS)
def test_a_null_text_of_no_use(case, parts, tmp_path):
    one_file(tmp_path / "one.safetensors", parts, null_text=NULL_TEXTS[case])
    refused(tmp_path / "one.safetensors")
