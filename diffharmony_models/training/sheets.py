"""Sample sheets of a training run: rows of pictures, one column a stage."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def save(columns: list[torch.Tensor], path: Path) -> None:
    """Writes one JPEG: column k holds the pictures columns[k] ([N, 1 or 3, H, W] in [0, 1], all of one size), one row a sample."""
    pictures = [column.detach().float().expand(-1, 3, -1, -1) for column in columns]
    rows = torch.cat(pictures, dim=3)  # N, 3, H, W * columns
    sheet = torch.cat(list(rows), dim=1)  # 3, H * N, W * columns
    pixels = (sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=92)
