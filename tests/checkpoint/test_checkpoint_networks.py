"""The networks that parts make."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparing import BUILD
from support import lay

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import configs
from diffharmony_models.checkpoint.kinds import KINDS


def test_shapes_are_those_of_the_networks():
    """What a config asks for is told without building it: here it is compared with what is built."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    three = {"block_out_channels": (32, 64, 96), "attention_head_dim": 4, "cross_attention_dim": 24}
    mixed = {
        "layers_per_block": [1, 2, 3],
        "transformer_layers_per_block": [1, 2, 3],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
    }
    one = {"block_out_channels": (32,), "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    four = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        built = [
            ("unet", UNet2DConditionModel(in_channels=9, cross_attention_dim=768)),
            (
                "unet",
                UNet2DConditionModel(in_channels=9, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
            ),
            ("unet", UNet2DConditionModel(in_channels=9, **three, **mixed)),
            ("unet", UNet2DConditionModel(in_channels=9, **one)),
            ("vae", AutoencoderKL(block_out_channels=(32, 64, 64, 96), layers_per_block=2, **four)),
            ("vae", AutoencoderKL(block_out_channels=(32, 64, 64, 96), mid_block_add_attention=False, **four)),
            ("text_encoder", CLIPTextModel(CLIPTextConfig(num_hidden_layers=3, num_attention_heads=8))),
        ]
    for kind, network in built:
        settings = network.config.to_json_string() if kind == "text_encoder" else network.to_json_string()
        config = configs.clean(kind, json.loads(settings))
        state = {key.removeprefix("text_model."): tuple(value.shape) for key, value in network.state_dict().items()}
        assert KINDS[kind].expected(config) == state


def test_building_costs_no_memory_and_no_random_numbers(tiny):
    state = torch.get_rng_state()
    for kind, build in BUILD.items():
        part = getattr(tiny, kind)
        module = build(part)
        for key, value in module.state_dict().items():
            assert value.data_ptr() == part.state[key].data_ptr()
        assert not any(buffer.is_meta for buffer in module.buffers())
        assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_mapped_weights_can_be_changed_without_touching_the_file(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    checkpoints.write(tiny, path)
    content = path.read_bytes()
    module = checkpoints.build_refiner(checkpoints.read(path, parts=("refiner",)).refiner)
    with torch.no_grad():
        module.conv_in.weight.zero_()
    assert path.read_bytes() == content
    folder = lay(tmp_path / "part", tiny.refiner, "diffusion_pytorch_model.bin")
    content = (folder / "diffusion_pytorch_model.bin").read_bytes()
    module = checkpoints.build_refiner(checkpoints.read(folder).refiner)
    with torch.no_grad():
        module.conv_in.weight.zero_()
    assert (folder / "diffusion_pytorch_model.bin").read_bytes() == content


@pytest.mark.slow
def test_nothing_heavy_is_imported():
    code = (
        "import sys, diffharmony_models.checkpoint; "
        "sys.exit(', '.join({'diffusers', 'transformers', 'accelerate'} & set(sys.modules)) or None)"
    )
    package = Path(checkpoints.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
