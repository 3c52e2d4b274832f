"""Picture files as tensors: any mode that Pillow opens, in; JPEG, PNG and WebP out, written whole or not at all."""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from .decoding import decode
from .opening import MAX_PIXELS
from .writing import write_bytes

READABLE = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".tga",
    ".jp2",
    ".avif",
)
"""The file names that a folder is searched for. A file named outright may have any name; its content decides."""

WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}
ALPHA_FORMATS = ("PNG", "WEBP")


@dataclass(frozen=True)
class Picture:
    """A picture as read from a file, turned upright.

    pixels: float32 [1, 3, H, W] in [0, 1], in the file's own colour space; alpha: float32 [1, 1, H, W] in [0, 1], or
    None where the file has none; icc_profile: the RGB profile to write back, or None; turned: whether the EXIF
    orientation made its width its height.
    """

    pixels: torch.Tensor
    alpha: torch.Tensor | None = None
    icc_profile: bytes | None = None
    turned: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.pixels.shape[-2], self.pixels.shape[-1]


def read_image(path: str | os.PathLike) -> Picture:
    """Reads a picture of any mode: 1, L, 16 bits, palette, RGBA, LA, CMYK, Lab, …; of several frames, the first.

    CMYK, Lab and grey pictures with a profile of their own are brought to sRGB. Pillow reads 16-bit *colour* files as
    8 bits. InputError, which names the file, for whatever is wrong with it: not there, no regular file, no whole
    picture, too large.
    """
    decoded = decode(path)
    return Picture(
        to_tensor(decoded.colors if decoded.deep is None else decoded.deep).expand(-1, 3, -1, -1).contiguous(),
        None if decoded.alpha is None else to_tensor(decoded.alpha),
        decoded.icc_profile,
        decoded.turned,
    )


def read_mask(path: str | os.PathLike) -> torch.Tensor:
    """Reads a mask: float32 [1, 1, H, W] in [0, 1], 1 = foreground.

    Where the file has an alpha channel that is not opaque all over, that is the mask; otherwise a pixel's brightest
    channel (so that a red or green mask on black counts as much as a white one). Errors as in `read_image`.
    """
    decoded = decode(path, colors=False)
    return to_tensor(decoded.matte() if decoded.deep is None else decoded.deep)


def to_tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    """An RGB or L picture, or floats [H, W] in [0, 1], as float32 [1, C, H, W] in [0, 1]."""
    array = np.array(image)
    if array.ndim == 2:
        array = array[:, :, None]
    pixels = torch.from_numpy(array).permute(2, 0, 1)[None]  # HWC -> BCHW
    if pixels.is_floating_point():
        return pixels.contiguous()
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """[1, C, H, W] or [C, H, W] in [0, 1] as uint8 [H, W, C], rounded to nearest.

    ValueError for NaN and for batches.
    """
    if image.dim() == 4 and image.shape[0] == 1:
        image = image[0]
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"expected one image [1, 3, H, W] or [3, H, W], got {list(image.shape)}; write a batch one image at a time"
        )
    image = image.detach().to("cpu", torch.float32)
    if not torch.isfinite(image).all():
        raise InputError("the image holds NaN or infinite values; try --dtype float32, or another checkpoint")
    scaled = image.mul(255).round_().clamp_(0, 255).to(torch.uint8)  # mul makes the copy that the rest may change
    return np.ascontiguousarray(scaled.permute(1, 2, 0).numpy())  # CHW -> HWC


def check_output(path: str | os.PathLike, size: tuple[int, int] | None = None) -> str:
    """Returns the format ("PNG", "JPEG", "WEBP") that a file's name asks for. Call it before the work, not after.

    InputError where the extension is none of these, something that is no regular file has the name, it lies in no
    folder that can be written to, or `size` (height, width) is more than the format, or MAX_PIXELS, allows.
    """
    path = Path(path)
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a file without extension'}; name it .png, .jpg or .webp"
        )
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG  # nothing there yet
    except (OSError, ValueError) as error:  # a link that leads to itself, a name too long, one with a null character
        raise InputError(f"{path}: cannot write there ({error}); give another name") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; give the name of a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a regular file; give another name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"{path}: cannot write there, {folder} is {'write-protected' if folder.is_dir() else 'a file'}; "
            "give another place"
        )
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"{path}: {size[1]}x{size[0]} is too large; at most {MAX_PIXELS // 1_000_000} megapixels are written"
        )
    if size is not None and max(size) > LARGEST_SIDE[kind]:
        raise InputError(
            f"{path}: {size[1]}x{size[0]} is too large for {kind}, whose sides hold {LARGEST_SIDE[kind]} pixels "
            "at most; write a .png"
        )
    return kind


def write_image(
    path: str | os.PathLike, image: torch.Tensor, icc_profile: bytes | None = None, alpha: torch.Tensor | None = None
) -> None:
    """Writes an image [1, 3, H, W] or [3, H, W] in [0, 1], 8 bits a channel, in the format that the extension names.

    JPEG at quality 95 without chroma subsampling; PNG and WebP without loss. `alpha` ([1, 1, H, W] in [0, 1]) is kept
    in PNG and WebP; JPEG has none. The file appears whole or not at all. ValueError for NaN, bad shapes and what
    `check_output` refuses.
    """
    kind = check_output(path, tuple(image.shape[-2:]))
    pixels = to_bytes(image)
    if alpha is not None and kind in ALPHA_FORMATS:
        pixels = np.concatenate([pixels, to_bytes(alpha)], axis=2)
    options: dict[str, Any] = {
        "PNG": {"compress_level": 4},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {
            "lossless": True,
            "exact": True,
            "quality": 30,
            "method": 2,
        },  # without loss, quality and method mean effort
    }[kind]
    if icc_profile:
        options["icc_profile"] = icc_profile
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind, **options)
    write_bytes(path, encoded.getbuffer())
