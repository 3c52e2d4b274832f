"""What several rooms test with: tiny checkpoints, and the layouts that they come in."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffharmony_models.checkpoint import Checkpoint, Part, part_from
from diffharmony_models.networks.color_regressor import ColorRegressor
from diffharmony_models.networks.harmony_vae import HarmonyVAE
from diffharmony_models.networks.refiner import Refiner

WEIGHTS = "diffusion_pytorch_model.safetensors"
FOLDERS = {"unet": "base/unet", "vae": "base/vae", "text_encoder": "base/text_encoder"}  # of the published layout
FOLDERS |= {"refiner": "refinement", "harmony_vae": "condition_vae"}


def smallest_networks(widths: tuple[int, ...] = (8, 8, 8, 8)) -> dict[str, torch.nn.Module]:
    """UNet, VAE and refiner with random weights at the smallest widths, for 64 pixels. widths: of the first two."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    blocks = {"block_out_channels": widths, "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        **blocks, in_channels=9, out_channels=4, attention_head_dim=2, cross_attention_dim=8, sample_size=8
    )
    vae = AutoencoderKL(
        **blocks,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        latent_channels=4,
        scaling_factor=0.18215,
    )
    return {"unet": unet, "vae": vae, "refiner": Refiner(**{**blocks, "block_out_channels": (8, 8)})}


def tiny_networks(
    widths: tuple[int, ...] = (32, 96),
    image_widths: tuple[int, ...] = (32, 64),
    text: int = 16,
    heads: int = 4,
    groups: int = 32,
) -> dict[str, torch.nn.Module]:
    """One network of each kind, with random weights. widths: of the UNet; image_widths: of VAE and refiner."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    levels = len(widths)
    blocks = {"block_out_channels": image_widths, "layers_per_block": 1, "norm_num_groups": groups}
    unet = UNet2DConditionModel(
        in_channels=9,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=text,
        attention_head_dim=heads,
        norm_num_groups=groups,
        down_block_types=["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
    )
    vae = AutoencoderKL(
        **blocks,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    harmony_vae = HarmonyVAE.from_vae(vae)
    for name, parameter in harmony_vae.named_parameters():
        if "skip" in name:
            torch.nn.init.normal_(parameter)
    colors = ColorRegressor(size=64, width=16)
    torch.nn.init.normal_(colors.curve.weight, std=0.05)
    refiner = Refiner(**blocks)
    return {"unet": unet, "vae": vae, "refiner": refiner, "harmony_vae": harmony_vae, "color_regressor": colors}


def tiny_checkpoint() -> Checkpoint:
    """A whole checkpoint of other widths than the published ones."""
    torch.manual_seed(0)
    parts = {kind: part_from(module) for kind, module in tiny_networks().items()}
    return Checkpoint("tiny", **parts, null_text=torch.randn(77, 16), prediction_type="v_prediction", resolution=256)


def tiny_text_encoder(width: int = 16) -> Part:
    """A CLIP text encoder as transformers saves it."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = CLIPTextModel(config)
    content = json.loads(config.to_json_string()) | {"architectures": ["CLIPTextModel"]}
    state = {"text_model." + key.removeprefix("text_model."): value for key, value in model.state_dict().items()}
    return Part(content, state | {"text_model.embeddings.position_ids": torch.arange(77)[None]})


def lay(folder: Path, part: Part, name: str = WEIGHTS) -> Path:
    """A part's folder as diffusers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(part.config))
    state = {key: value.contiguous() for key, value in part.state.items()}
    (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)
    return folder
