"""Checkpoints in the host: which names are offered, which are refused and how, and when a file is read again."""

import json
import os
import shutil

import pictures
import pytest
import torch
import weights
from graphs import BUNDLED, condition, harmonize, wires
from harness import Failed, Graph, Refused
from safetensors.torch import load_file, save_file

from diffharmony_models import checkpoint as checkpoints


def offered(host) -> list[str]:
    return host.get("/object_info/LoadDiffHarmony")["LoadDiffHarmony"]["input"]["required"]["checkpoint"][-1]["options"]


def test_the_bundled_checkpoint_is_the_default(host):
    _, *settings = host.get("/object_info/LoadDiffHarmony")["LoadDiffHarmony"]["input"]["required"]["checkpoint"]
    assert settings[0]["default"] == BUNDLED and BUNDLED in settings[0]["options"]


def test_the_list_has_files_and_published_folders_and_nothing_else(host, published):
    mine = published / "mine"
    mine.mkdir()
    shutil.copytree(published / "base", mine / "zip" / "base")
    shutil.copytree(published / "refinement", mine / "zip" / "refinement")
    shutil.copytree(published / "inverse", mine / "zip" / "inverse")
    checkpoints.write(weights.whole(), mine / "one file.safetensors")
    checkpoints.write(weights.whole(), host.more_models / "harmonizers" / "elsewhere.safetensors")
    (mine / "notes.txt").write_text("no checkpoint")
    try:
        names = offered(host)
    finally:
        shutil.rmtree(mine)
    assert {"base", "mine/zip/base", "mine/one file.safetensors", "elsewhere.safetensors", BUNDLED} <= set(names)
    assert not [
        name for name in names if "inverse" in name or "notes" in name or name.endswith(("unet", "vae", "encoder"))
    ]
    assert len(names) == len(set(names))


def test_bad_entries_leave_the_list_as_it_was(host, published):
    bad = published / "bad"
    before = offered(host)
    for number, content in enumerate((b'{"architectures": 5}', b"[" * 100_000, b'{"_class_name": [[1]]}')):
        (bad / f"config {number}").mkdir(parents=True)
        (bad / f"config {number}" / "config.json").write_bytes(content)
    os.mkfifo(bad / "pipe.safetensors")
    for number in range(30):
        (bad / f"again {number}").symlink_to(".")
        (bad / f"up {number}").symlink_to("..")
    try:
        assert offered(host) == before and "base" in before
    finally:
        shutil.rmtree(bad)


SAID = {  # what a one-file checkpoint says of itself, and what the message must say of that
    "groups": ({"unet": {"norm_num_groups": -8}}, "norm_num_groups -8"),
    "layers": ({"unet": {"layers_per_block": [1_000_000_000, 1, 1, 1]}}, "layers_per_block"),
    "width of time": ({"unet": {"time_embedding_dim": -5}}, "time_embedding_dim -5"),
    "no scale": ({"vae": {"scaling_factor": None}}, "scaling_factor None"),
    "heads": ({"refiner": {"attention_head_dim": 0}}, "attention_head_dim 0"),
    "resolution": ({"resolution": "20000"}, 'resolution "20000"'),
}


@pytest.mark.parametrize("case", SAID)
def test_a_config_that_says_what_it_must_not_is_told_of(host, case):
    changes, words = SAID[case]
    content, path = weights.whole(), host.models / "diffharmony" / "said.safetensors"
    tensors, metadata = {"null_text": content.null_text}, {"format": "diffharmony"}
    for kind in ("unet", "vae", "refiner"):
        part = getattr(content, kind)
        tensors |= {f"{kind}.{key}": value.clone() for key, value in part.state.items()}
        metadata[kind] = json.dumps(part.config | changes.get(kind, {}))
    metadata |= {key: value for key, value in changes.items() if isinstance(value, str)}
    save_file(tensors, path, metadata)
    with pytest.raises((Failed, Refused)) as failure:
        load_only(host, path.name)
    assert words in str(failure.value) and "said.safetensors" in str(failure.value)


def encode(host, name: str):
    """A prompt that reads a checkpoint and encodes with its VAE, and that encoding."""
    graph, shared = wires(host, name, *pictures.composites())
    conditioned = condition(graph, shared, 64)
    return graph, shared, conditioned


def test_a_file_of_extra_model_paths_is_loaded(host):
    checkpoints.write(weights.whole(), host.more_models / "harmonizers" / "second place.safetensors")
    graph, shared = wires(host, "second place.safetensors", *pictures.composites())
    assert torch.isfinite(host.fetch(graph, harmonize(graph, shared, 64))[0]).all()


def test_the_published_folder_is_loaded_with_what_lies_beside_it(host, published):
    composite, mask = pictures.composites()
    graph, shared = wires(host, "base", composite, mask)
    latent = harmonize(graph, shared, 64)
    inputs = {"harmonized": shared["composite"], "composite": shared["composite"], "mask": shared["mask"]}
    refined = graph(
        "RefineResidual", refiner=shared["refiner"], **inputs, strength=1.0, keep_background=True, feather=0
    )
    found, picture = host.fetch(graph, latent, refined[0])
    assert torch.isfinite(found).all() and not torch.equal(picture, pictures.image(composite))


def test_the_null_text_of_a_folder(host, published):
    graph = Graph()
    load = graph("LoadDiffHarmony", checkpoint="base", weight_dtype="fp32")
    (found,) = host.fetch(graph, load[2])
    torch.testing.assert_close(found[0], checkpoints.read(published / "base").null_text, atol=1e-5, rtol=0)


REFUSED = {
    "of a shared workflow": ("somebodys.safetensors", ["somebodys.safetensors", "models/diffharmony"]),
    "out of the folder": (
        "../checkpoints/secret.safetensors",
        ["../checkpoints/secret.safetensors", "models/diffharmony"],
    ),
    "out of the folder, Windows": ("..\\secret.safetensors", ["secret.safetensors", "models/diffharmony"]),
    "out of the folder by a detour": ("base/../../secret.safetensors", ["secret.safetensors", "models/diffharmony"]),
    "absolute": (None, ["models/diffharmony"]),
    "absolute, Windows": ("C:\\secret.safetensors", ["secret.safetensors", "models/diffharmony"]),
    "the folder itself": (".", ["models/diffharmony"]),
    "none": ("", ["models/diffharmony"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_that_leads_nowhere_is_refused_before_anything_runs(host, published, tmp_path, case):
    name, words = REFUSED[case]
    (host.models / "secret.safetensors").write_bytes(b"")  # so that it is not its absence that is told
    (host.models / "checkpoints").mkdir(exist_ok=True)
    (host.models / "checkpoints" / "secret.safetensors").write_bytes(b"")
    graph, _, conditioned = encode(host, str(host.models / "secret.safetensors") if name is None else name)
    graph("TestSave", value=conditioned[2], file="refused")
    with pytest.raises(Refused) as refusal:
        host.run(graph)
    message = str(refusal.value).replace("\\", "/")
    assert all(word in message for word in words), message
    assert not (host.output / "refused").exists()


def load_only(host, name: str) -> tuple[torch.Tensor, bool]:
    """The null text of a checkpoint, and whether the host took it from its memory."""
    graph = Graph()
    load = graph("LoadDiffHarmony", checkpoint=name, weight_dtype="fp32")
    file = f"null text {os.urandom(4).hex()}"
    graph("TestSave", value=load[2], file=file)
    run = host.run(graph)
    return load_file(host.output / file)["value"], load.identity in run.cached


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_a_changed_checkpoint_is_read_again_and_an_unchanged_one_is_not(host, layout):
    folder = host.models / "diffharmony"
    content = weights.whole()
    if layout == "file":
        name, path = "changing.safetensors", folder / "changing.safetensors"
        checkpoints.write(content, path)
    else:
        name, path = (
            "changing/base",
            folder / "changing" / "base" / "text_encoder" / "diffusion_pytorch_model.safetensors",
        )
        weights.published(folder / "changing")
    first, cached = load_only(host, name)
    assert not cached
    same, cached = load_only(host, name)
    assert cached and torch.equal(same, first)
    if layout == "file":
        content.null_text = content.null_text + 1
        checkpoints.write(content, path)
    else:
        state = load_file(path)
        save_file({key: value * 1.5 for key, value in state.items()}, path)
    changed, cached = load_only(host, name)
    assert not cached and not torch.equal(changed, first)


def test_a_damaged_file_is_told_of_in_one_sentence(host):
    path = host.models / "diffharmony" / "damaged.safetensors"
    checkpoints.write(weights.whole(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((Failed, Refused)) as failure:
        load_only(host, path.name)
    assert "damaged.safetensors" in str(failure.value) and "Traceback" not in str(failure.value)


def test_a_file_that_is_no_checkpoint_is_told_of_by_name(host, published):
    (published / "notes.txt").write_text("no checkpoint")
    with pytest.raises((Failed, Refused), match=r"notes\.txt"):
        load_only(host, "notes.txt")
