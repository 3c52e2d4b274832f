"""Sample sheets of a training run: rows of pictures, one column a stage."""

from pathlib import Path

import torch

from ..files import images


def save(columns: list[torch.Tensor], path: Path) -> None:
    """Writes one JPEG: column k holds the pictures columns[k] ([N, 1 or 3, H, W] in [0, 1], all of one size), one row a
    sample.
    """
    pictures = [column.detach().float().expand(-1, 3, -1, -1) for column in columns]
    rows = torch.cat(pictures, dim=3)  # N, 3, H, W * columns
    images.write_image(path, torch.cat(list(rows), dim=1).clamp(0, 1))  # 3, H * N, W * columns
