"""Weights to test with: random ones in the layouts and of the shapes that users have, at tiny width where the host
allows.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffharmony_models import checkpoint as checkpoints
from diffharmony_models.checkpoint import Part
from diffharmony_models.networks.color_regressor import ColorRegressor
from diffharmony_models.networks.refiner import Refiner

WIDTH = 32  # of the null text


def lay(folder: Path, part: Part, dtype: torch.dtype | None = None) -> None:
    """One part's folder as diffusers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(part.config))
    state = {key: value.to(dtype or value.dtype).contiguous() for key, value in part.state.items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


def unet(seed: int = 0, **more) -> Part:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64, 64, 64),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
    }
    return checkpoints.part_from(UNet2DConditionModel(in_channels=9, **{**settings, **more}))


def vae(widths: tuple = (32, 32, 64, 64), layers: int = 1) -> Part:
    """An AutoencoderKL; (128, 256, 512, 512) with 2 layers is SD 1.5's."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return checkpoints.part_from(
        AutoencoderKL(block_out_channels=widths, layers_per_block=layers, **blocks, scaling_factor=0.18215)
    )


def published(folder: Path, unet_part: Part | None = None, width: int = WIDTH) -> None:
    """The unpacked zip: base/, refinement/ and the inverse model, which nobody must be offered.

    width: of the text encoder, which must be that of the UNet."""
    from transformers import CLIPTextConfig, CLIPTextModel

    base, inverse = folder / "base", folder / "inverse"
    lay(base / "unet", unet_part or unet())
    lay(base / "vae", vae())
    lay(inverse / "weights-102800", unet(seed=5))
    lay(inverse / "vae", vae())
    for pipeline in (base, inverse):
        (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionInpaintPipeline"}')
    (base / "scheduler").mkdir()
    (base / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    torch.manual_seed(2)
    encoder = CLIPTextModel(
        CLIPTextConfig(hidden_size=width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    )
    config = json.loads(encoder.config.to_json_string()) | {"architectures": ["CLIPTextModel"]}
    state = {"text_model." + key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    lay(base / "text_encoder", Part(config, state))
    torch.manual_seed(3)
    lay(folder / "refinement", checkpoints.part_from(Refiner(block_out_channels=(32, 32), layers_per_block=1)))


def color_regressor() -> ColorRegressor:
    """One of full size, whose answers are far from "no change"."""
    torch.manual_seed(0)
    network = ColorRegressor().eval()
    with torch.no_grad():
        network.curve.weight.normal_(0, 0.03)
        network.field.weight.normal_(0, 0.02)
    return network


def whole(seed: int = 0) -> checkpoints.Checkpoint:
    """A one-file checkpoint's content, with every part but the Harmony-VAE. seed: of the UNet."""
    torch.manual_seed(4)
    refiner = checkpoints.part_from(Refiner(block_out_channels=(32, 32), layers_per_block=1))
    parts = {"unet": unet(seed), "vae": vae(), "refiner": refiner, "null_text": torch.randn(77, WIDTH)}
    return checkpoints.Checkpoint("whole", **parts, resolution=64)
