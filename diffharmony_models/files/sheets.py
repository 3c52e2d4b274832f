"""Sheets of labelled pictures, to look at results side by side."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import printable
from .images import to_bytes, to_tensor


def comparison_sheet(
    rows: Sequence[Sequence[tuple[str, torch.Tensor]]], side: int = 512, title: str = ""
) -> torch.Tensor:
    """One sheet of labelled pictures: float32 [1, 3, H, W] in [0, 1], for `write_image`.

    rows: for each row, (label, image) with images [1, 3 or 1, h, w] in [0, 1]; one channel (a mask) is shown grey.
    Every picture is scaled to fit `side` pixels, so that different sizes of the same picture stand beside each other at
    one scale.
    """
    margin, font = 8, ImageFont.load_default(size=16)
    caption = 26
    shown = [[(label, _fit(image, side)) for label, image in row] for row in rows]
    width = margin + max(sum(picture.width + margin for _, picture in row) for row in shown)
    heights = [caption + max(picture.height for _, picture in row) for row in shown]
    top = margin + (caption if title else 0)
    sheet = Image.new("RGB", (width, top + sum(height + margin for height in heights)), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((margin, margin), _shorten(title, font, width - 2 * margin), fill="black", font=font)
    for row, height in zip(shown, heights):
        left = margin
        for label, picture in row:
            draw.text((left, top), _shorten(label, font, picture.width), fill="black", font=font)
            sheet.paste(picture, (left, top + caption))
            left += picture.width + margin
        top += height + margin
    return to_tensor(sheet)


def grid(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures of one size without labels, one row a sample: [3, H, W] in [0, 1], for `write_image`.

    columns: [N, 1 or 3, h, w] each; values beyond [0, 1] are cut off.
    """
    pictures = [column.detach().float().cpu().expand(-1, 3, -1, -1) for column in columns]
    rows = torch.cat(pictures, dim=3)  # N, 3, h, w * columns
    return torch.cat(list(rows), dim=1).clamp(0, 1)  # 3, h * N, w * columns


def _fit(image: torch.Tensor, side: int) -> Image.Image:
    pixels = to_bytes(image)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")
    scale = side / max(picture.size)
    return picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.LANCZOS)


def _shorten(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The text as one line, with its end cut off where it does not fit the width."""
    text = printable(text).replace("\n", " ")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
