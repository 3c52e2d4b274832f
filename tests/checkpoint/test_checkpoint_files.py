"""The files of a part: which is taken, shards, names of before, pickles."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from comparing import BUILD, PUBLISHED, names, refused, run, same
from safetensors.torch import load_file, save_file
from support import WEIGHTS, lay

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import Part

SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"


def test_null_text_of_the_published_text_encoder(golden_dir):
    expected = load_file(golden_dir / "golden.safetensors")["null_text"][0]
    loaded = checkpoints.read(golden_dir)
    assert names(loaded) == {*PUBLISHED, "null_text"} and loaded.null_text.dtype == torch.float32
    assert (loaded.null_text - expected).abs().max() <= 1e-5
    for kind in PUBLISHED:
        assert same(checkpoints.part_from(BUILD[kind](getattr(loaded, kind))), getattr(loaded, kind))


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["diffusion_pytorch_model.fp16.safetensors"], 0),
        (["diffusion_pytorch_model.fp16.safetensors", WEIGHTS], 1),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.fp16.safetensors"], 1),
        (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin"], 1),
        (["diffusion_pytorch_model.bin", WEIGHTS], 1),
        (["another.safetensors", "diffusion_pytorch_model.bin"], 1),
        (["diffusion_pytorch_model.non_ema.bin"], 0),
    ],
)
def test_which_file_is_taken(files, taken, tiny, tmp_path):
    for number, name in enumerate(files):
        state = {key: torch.full_like(value, number) for key, value in tiny.refiner.state.items()}
        lay(tmp_path / "part", Part(tiny.refiner.config, state), name)
    assert checkpoints.read(tmp_path / "part").refiner.state["conv_in.bias"][0] == taken


@pytest.mark.parametrize("index", [f"{WEIGHTS}.index.json", "diffusion_pytorch_model.safetensors.index.fp16.json"])
def test_shards(index, tiny, tmp_path):
    folder = lay(tmp_path / "vae", tiny.vae)
    (folder / WEIGHTS).unlink()
    keys = list(tiny.vae.state)
    weight_map = {key: SHARD if number % 2 else SHARD.replace("1-of", "2-of") for number, key in enumerate(keys)}
    for name in set(weight_map.values()):
        save_file({key: tiny.vae.state[key] for key in keys if weight_map[key] == name}, folder / name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same(checkpoints.read(folder).vae, tiny.vae)
    for elsewhere in (f"../vae/{SHARD}", str(folder / SHARD), f"./{SHARD}"):  # all of them there
        assert (folder / elsewhere).is_file()
        content = {"weight_map": weight_map | {keys[0]: elsewhere}}
        (folder / index).write_text(json.dumps(content))
        refused(lambda: checkpoints.read(folder), index, "no weight files that lie beside it")
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    (folder / SHARD).unlink()
    refused(lambda: checkpoints.read(folder), index, "not all files")


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("kind", ["vae", "harmony_vae", "refiner"])
def test_old_attention_names(kind, convolutions, tiny, tmp_path):
    part, old = getattr(tiny, kind), {}
    for key, value in part.state.items():
        if ".attentions." in key:
            for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                key = key.replace(f".{new}.", f".{name}.")
            if convolutions and value.dim() == 2:
                value = value[:, :, None, None]
        old[key] = value
    assert any(key.endswith("proj_attn.weight") for key in old)
    loaded = getattr(checkpoints.read(lay(tmp_path / "old", Part(part.config, old))), kind)
    assert same(loaded, part)
    assert torch.equal(run(kind, BUILD[kind](loaded)), run(kind, BUILD[kind](part)))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights(zipped, tiny, tmp_path):
    folder = lay(tmp_path / "part", tiny.refiner, "diffusion_pytorch_model.bin")
    path = folder / "diffusion_pytorch_model.bin"
    torch.save({"state_dict": dict(tiny.refiner.state)}, path, _use_new_zipfile_serialization=zipped)
    assert same(checkpoints.read(folder).refiner, tiny.refiner)
    assert same(checkpoints.read(path).refiner, tiny.refiner)


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_pickle_that_wants_to_run_code(zipped, root, tmp_path, recwarn):
    marker, path = tmp_path / "executed", root / "base" / "text_encoder" / "pytorch_model.bin"
    content = {"text_model.embeddings.token_embedding.weight": Payload(marker)}
    if zipped is None:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for where in (root, root / "base", path.parent, path):
        refused(lambda where=where: checkpoints.read(where), str(path), "run code", "nothing of it was executed")
    assert not marker.exists() and not recwarn.list
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # it would have
