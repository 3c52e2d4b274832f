"""Pictures to test with, and how pictures are compared. Images are [B, 3, H, W] in [0, 1], masks [B, 1, H, W], as in
the engine; the host's IMAGE and MASK are made of them by `image` and `mask`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def composites(batch: int = 1, height: int = 96, width: int = 128, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth composites, each other, whose foreground (a box, each elsewhere) is too blue; 8 bits deep.

    And the masks.
    """
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(batch, 3, 6, 8, generator=generator)
    pictures = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0.05, 0.95)
    pictures += 0.03 * torch.rand(pictures.shape, generator=generator)
    masks = torch.zeros(batch, 1, height, width)
    for index in range(batch):
        top, left = height // 4 + index % 8, width // 4 - index % 8
        masks[index, :, top : top + height // 2, left : left + width // 2] = 1
    pictures = pictures + masks * torch.tensor([-0.2, -0.05, 0.3])[None, :, None, None]
    return (pictures.clamp(0, 1) * 255).round() / 255, masks


def image(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.movedim(1, -1)  # BCHW -> BHWC


def mask(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, 0]


def write(path: Path, tensor: torch.Tensor) -> None:
    """One picture [C, H, W], C = 1, 3 or 4, as PNG whatever the name says, so that nothing is lost."""
    pixels = (tensor * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path, "PNG")


def read(path: Path) -> torch.Tensor:
    """A picture file as [1, 3, H, W]."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """dB, for values in [0, 1]."""
    assert one.shape == other.shape, f"{list(one.shape)} != {list(other.shape)}"
    return float(-10 * torch.log10((one.double() - other.double()).square().mean().clamp(min=1e-12)))
