"""Picture files: any mode that Pillow opens, in; JPEG, PNG and WebP out, written whole or not at all."""

import errno
import io
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from .errors import InputError

logger = logging.getLogger(__name__)

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

MAX_PIXELS = 178_956_970
"""The largest picture read or written, in pixels: where Pillow, too, speaks of a decompression bomb."""


@dataclass(frozen=True)
class Picture:
    """A picture as read from a file, turned upright.

    pixels: float32 [1, 3, H, W] in [0, 1], in the file's own colour space; alpha: float32 [1, 1, H, W] in [0, 1], or None where
    the file has none; icc_profile: the RGB profile to write back, or None; turned: whether an EXIF orientation was applied.
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
    """Reads a picture of any mode that Pillow opens: 1, L, 16 bits, palette, RGBA, LA, CMYK, Lab, …; of several frames, the first.

    CMYK, Lab and grey pictures with a profile of their own are brought to sRGB. Pillow reads 16-bit *colour* files as 8 bits.
    ValueError where the file is no whole picture or is larger than MAX_PIXELS; FileNotFoundError and the like as they come.
    """
    image, turned = _open(path)
    pixels, alpha = _channels(image, path)
    profile = image.info.get("icc_profile")
    if _profile_space(profile) != b"RGB ":
        profile = None
    return Picture(pixels, alpha, profile, turned)


def read_mask(path: str | os.PathLike) -> torch.Tensor:
    """Reads a mask: float32 [1, 1, H, W] in [0, 1], 1 = foreground.

    Where the file has an alpha channel that is not opaque all over, that is the mask; otherwise a pixel's brightest channel (so that
    a red or green mask on black counts as much as a white one). Errors as in `read_image`.
    """
    image, _ = _open(path)
    image.info.pop("icc_profile", None)  # a mask's numbers are no colours
    pixels, alpha = _channels(image, path)
    if alpha is not None and alpha.min() < 1:
        return alpha
    return pixels.amax(dim=1, keepdim=True)


def check_output(path: str | os.PathLike, size: tuple[int, int] | None = None) -> str:
    """Returns the format ("PNG", "JPEG", "WEBP") that a file's name asks for. Call it before the work, not after.

    ValueError where the extension is none of these, the path is a folder or in no folder that can be written to, or `size`
    (height, width) is more than the format, or MAX_PIXELS, allows.
    """
    path = Path(path)
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: cannot write {path.suffix or 'a file without extension'}; name it .png, .jpg or .webp"
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"{path}: cannot write there, {folder} is {'write-protected' if folder.is_dir() else 'a file'}; give another place"
        )
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"{path}: {size[1]}x{size[0]} is too large; at most {MAX_PIXELS // 1_000_000} megapixels are written"
        )
    if size is not None and max(size) > LARGEST_SIDE[kind]:
        raise InputError(
            f"{path}: {size[1]}x{size[0]} is too large for {kind}, whose sides hold {LARGEST_SIDE[kind]} pixels at most; write a .png"
        )
    return kind


def write_image(
    path: str | os.PathLike, image: torch.Tensor, icc_profile: bytes | None = None, alpha: torch.Tensor | None = None
) -> None:
    """Writes an image [1, 3, H, W] or [3, H, W] in [0, 1], 8 bits a channel, in the format that the extension names.

    JPEG at quality 95 without chroma subsampling; PNG and WebP without loss. `alpha` ([1, 1, H, W] in [0, 1]) is kept in PNG and
    WebP; JPEG has none. The file appears whole or not at all. ValueError for NaN, bad shapes and what `check_output` refuses.
    """
    kind = check_output(path, tuple(image.shape[-2:]))
    pixels = to_bytes(image)
    if alpha is not None and kind in ALPHA_FORMATS:
        pixels = np.concatenate([pixels, to_bytes(alpha)], axis=2)
    options = {
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


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file beside its place and moves it there once it is whole. On any failure nothing of it stays.

    OSError says which file could not be written and why (no room, no permission, …).
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name[:80]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OSError(
            error.errno, "no room on the disk to write" if room else f"cannot write ({error.strerror})", str(path)
        ) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """[1, C, H, W] or [C, H, W] in [0, 1] as uint8 [H, W, C], rounded to nearest. ValueError for NaN and for batches."""
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


def comparison_sheet(
    rows: Sequence[Sequence[tuple[str, torch.Tensor]]], side: int = 512, title: str = ""
) -> torch.Tensor:
    """One sheet of labelled pictures: float32 [1, 3, H, W] in [0, 1], for `write_image`.

    rows: for each row, (label, image) with images [1, 3 or 1, h, w] in [0, 1]; one channel (a mask) is shown grey. Every picture is
    scaled to fit `side` pixels, so that different sizes of the same picture stand beside each other at one scale.
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
    return _to_tensor(sheet)


def _open(path: str | os.PathLike) -> tuple[Image.Image, bool]:
    """The first frame of a file, upright and fully decoded, and whether it had to be turned."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a picture file")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; what matters is raised below
        try:
            image = Image.open(file)
            _check_area(path, image.size)
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                logger.warning("%s has %d frames; only the first is used", path, image.n_frames)
                image.seek(0)
            image.load()
            turned = image.getexif().get(0x0112, 1) != 1  # the EXIF orientation
            return ImageOps.exif_transpose(image), turned
        except UnidentifiedImageError as error:
            raise InputError(
                f"{path} is not a picture that can be read (unknown format or damaged); give a PNG, JPEG, WebP or TIFF"
            ) from error
        except _TooLarge:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(f"{path} is too large: {error}; scale it down first") from error
        except MemoryError as error:
            raise InputError(f"{path} does not fit into memory; scale it down first") from error
        except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
            raise InputError(
                f"{path} is damaged or cut short and cannot be read ({error}); save or download it again"
            ) from error


class _TooLarge(InputError):
    """Told apart from the ValueErrors that Pillow itself raises on damaged files."""


def _check_area(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _TooLarge(
            f"{path} is too large: {width}x{height}; at most {MAX_PIXELS // 1_000_000} megapixels are read, scale it down first"
        )


def _channels(image: Image.Image, path: str | os.PathLike) -> tuple[torch.Tensor, torch.Tensor | None]:
    """RGB [1, 3, H, W] and alpha [1, 1, H, W] or None, float32 in [0, 1]."""
    if image.mode.startswith("I") or image.mode == "F":
        return _high_depth(image, path).expand(-1, 3, -1, -1).contiguous(), None
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        alpha = _to_tensor(image.getchannel("A"))
        image = image.convert("L" if image.mode == "LA" else "RGB")
    return _to_tensor(_to_rgb(image)), alpha


def _high_depth(image: Image.Image, path: str | os.PathLike) -> torch.Tensor:
    """A grey picture of 16 bits or of floating point, as [1, 1, H, W] in [0, 1]."""
    values = np.asarray(image).astype(np.float32)
    highest = 1 if image.mode == "F" else 65535
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > highest:
        raise InputError(
            f"{path} holds values from {values.min():g} to {values.max():g}; a picture of mode {image.mode} must keep to 0..{highest};"
            " save it with 8 or 16 bits a channel"
        )
    return torch.from_numpy(values / highest)[None, None]


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any 8-bit mode as RGB; grey, CMYK and Lab through their profiles, since what goes out is RGB."""
    if image.mode in ("RGB", "RGBX", "P", "1"):
        return image.convert("RGB")
    profile, space = image.info.get("icc_profile"), _profile_space(image.info.get("icc_profile"))
    try:
        if image.mode == "LAB":
            return ImageCms.profileToProfile(
                image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        if (image.mode, space) in (("CMYK", b"CMYK"), ("L", b"GRAY")):
            return ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("the picture's colour profile cannot be used (%s); it is read without it", error)
    return image.convert("RGB")


def _profile_space(profile: bytes | None) -> bytes:
    """The colour space an ICC profile is for: bytes 16–19 of its header."""
    return profile[16:20] if profile else b""


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB or L picture as float32 [1, C, H, W] in [0, 1]."""
    array = np.array(image)
    if array.ndim == 2:
        array = array[:, :, None]
    return (
        torch.from_numpy(array)
        .permute(2, 0, 1)[None]
        .to(torch.float32, memory_format=torch.contiguous_format)
        .div_(255)
    )  # HWC -> BCHW


def _fit(image: torch.Tensor, side: int) -> Image.Image:
    pixels = to_bytes(image)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("RGB")
    scale = side / max(picture.size)
    return picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.LANCZOS)


def _shorten(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """The text with its end cut off where it does not fit the width."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
