"""What the attacks share: what is said in configs, and how a refusal is checked."""

import json
import os
import socket
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import Part
from diffharmony_models.errors import InputError


def refused(path: Path, *names: str) -> str:
    """Reading must end in an InputError of a line that names the file, within seconds. Returns what it says."""
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        checkpoints.read(path)
    message = str(error.value)
    assert time.perf_counter() - start < 15
    assert message.isprintable() and len(message) < 1000, message[:2000]
    assert all(name in message for name in (str(path), *names)), message
    return message


SAID = {
    "unet": [
        {"transformer_layers_per_block": 1_000_000_000},
        {"transformer_layers_per_block": [1_000_000_000, 1]},
        {"transformer_layers_per_block": [[1, 1], [1, 1]]},
        {"layers_per_block": [1_000_000_000, 1]},
        {"layers_per_block": 10**30},
        {"layers_per_block": [1]},
        {"layers_per_block": True},
        {"layers_per_block": 1.5},
        {"layers_per_block": None},
        {"layers_per_block": 0},
        {"block_out_channels": [8] * 1000},
        {"block_out_channels": [8, -8]},
        {"block_out_channels": [8, "8"]},
        {"block_out_channels": []},
        {"block_out_channels": 8},
        {"block_out_channels": "88"},
        {"block_out_channels": [8, [8]]},
        {"norm_num_groups": -8},
        {"norm_num_groups": 0},
        {"norm_num_groups": 3},
        {"norm_num_groups": None},
        {"norm_num_groups": "x" * 1_000_000},
        {"norm_num_groups": "\n\x1b[2J"},
        {"attention_head_dim": 0},
        {"attention_head_dim": 3},
        {"attention_head_dim": [2]},
        {"attention_head_dim": {"a": 1}},
        {"num_attention_heads": 0},
        {"time_embedding_dim": -5},
        {"time_embedding_dim": 10**9},
        {"time_embedding_type": "fourier"},
        {"cross_attention_dim": [8, 8]},
        {"cross_attention_dim": -8},
        {"down_block_types": 5},
        {"down_block_types": ["DownBlock2D"]},
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
        {"down_block_types": [["DownBlock2D"], "DownBlock2D"]},
        {"mid_block_type": "MidBlock"},
        {"encoder_hid_dim": 10**9},
        {"encoder_hid_dim_type": "text_image_proj"},
        {"addition_embed_type": "text"},
        {"class_embed_type": "projection"},
        {"num_class_embeds": 10**9},
        {"conv_in_kernel": 10**6},
        {"act_fn": ["silu"]},
        {"norm_eps": float("nan")},
        {"norm_eps": "1e-5"},
        {"sample_size": 10**9},
        {"sample_size": "64"},
        {"in_channels": "9"},
        {"out_channels": 10**9},
        {"use_linear_projection": "yes"},
        {"_class_name": "UNet2DConditionModel", "upcast_attention": 5},
    ],
    "vae": [
        {"scaling_factor": None},
        {"scaling_factor": 0},
        {"scaling_factor": -1},
        {"scaling_factor": float("inf")},
        {"scaling_factor": float("nan")},
        {"scaling_factor": "0.18"},
        {"scaling_factor": True},
        {"scaling_factor": 10**400},
        {"shift_factor": 1.5},
        {"latents_mean": [0.0]},
        {"latent_channels": 10**9},
        {"layers_per_block": 1_000_000_000},
        {"layers_per_block": [1, 1]},
        {"mid_block_add_attention": False},
        {"use_quant_conv": False},
        {"force_upcast": "no"},
        {"sample_size": None},
        {"up_block_types": ["UpDecoderBlock2D"] * 3},
    ],
    "refiner": [
        {"attention_head_dim": 0},
        {"attention_head_dim": 3},
        {"attention_head_dim": -8},
        {"attention_head_dim": "8"},
        {"downsample_padding": 10**9},
        {"norm_eps": None},
        {"norm_eps": -1.0},
        {"layers_per_block": -1},
        {"block_out_channels": [10**9, 10**9]},
        {"up_block_types": None},
        {"input_residual": False},
    ],
    "harmony_vae": [
        {"scaling_factor": None},
        {"additional_in_channels": -1},
        {"norm_num_groups": "4"},
        {"latents_std": 5},
        {"mid_block_add_attention": None},
    ],
    "text_encoder": [
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"num_attention_heads": -2},
        {"hidden_size": "8"},
        {"hidden_act": "evil/kernel"},
        {"hidden_act": ["gelu"]},
        {"layer_norm_eps": 0},
        {"max_position_embeddings": 10**9},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 8},
        {"intermediate_size": None},
    ],
}


JSON = {  # what stands in place of a config.json
    "deep lists": b"[" * 100_000,
    "a deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "architectures no list": b'{"architectures": 5}',
    "architectures of lists": b'{"architectures": [[5], {}], "_class_name": [1]}',
    "a class of another kind": b'{"_class_name": ["UNet2DConditionModel"], "model_type": ["clip_text_model"]}',
    "a number of 5000 digits": b'{"in_channels": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "a lone surrogate": b'{"_class_name": "\\ud800", "x": 1}',
    "nothing": b"",
    "null": b"null",
    "NUL": b"\0" * 100,
}


def one_file(path: Path, parts: dict[str, Part], **more: torch.Tensor) -> tuple[dict, dict]:
    tensors = {f"refiner.{key}": value.clone() for key, value in parts["refiner"].state.items()} | more
    metadata = {"format": "diffharmony", "refiner": json.dumps(parts["refiner"].config)}
    save_file(tensors, path, metadata)
    return tensors, metadata


class Calls:
    def __init__(self, function: object, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zipped(path: Path, data: bytes, **settings: int) -> None:
    with zipfile.ZipFile(path, "w", **settings) as archive:
        archive.writestr("archive/data.pkl", data)


def special(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(folder)  # a socket's path is short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "dangling": "gone"}[kind])
    return path


SPECIAL = ["pipe", "socket", "device", "loop", "dangling", "folder"]
