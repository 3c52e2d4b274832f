"""Picture files: any mode that Pillow opens, in; JPEG, PNG and WebP out, written whole or not at all."""

import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageFont, UnidentifiedImageError

from ..errors import InputError, printable
from .writing import write_bytes

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

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""The formats that are opened, by Pillow's names. Others, some of which start a program (EPS), are never tried."""

WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}
ALPHA_FORMATS = ("PNG", "WEBP")

MAX_PIXELS = 178_956_970
"""The largest picture read or written, in pixels: where Pillow, too, speaks of a decompression bomb."""

MAX_BYTES = 8 * MAX_PIXELS
"""The largest file read: that many pixels, not compressed, with 16 bits in each of four channels."""

LARGEST_PROFILE = 2**24
"""Bytes of a colour profile: what fits into a JPEG."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of that EXIF orientation upright."""


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


@dataclass(frozen=True)
class _Decoded:
    """A file's picture, upright: colors in mode RGB (deep grey: I;16, I or F), alpha in mode L, and as in `Picture`."""

    colors: Image.Image
    alpha: Image.Image | None
    icc_profile: bytes | None
    turned: bool

    @property
    def deep(self) -> bool:
        return self.colors.mode != "RGB"


def read_image(path: str | os.PathLike) -> Picture:
    """Reads a picture of any mode: 1, L, 16 bits, palette, RGBA, LA, CMYK, Lab, …; of several frames, the first.

    CMYK, Lab and grey pictures with a profile of their own are brought to sRGB. Pillow reads 16-bit *colour* files as
    8 bits. InputError, which names the file, for whatever is wrong with it: not there, no regular file, no whole
    picture, too large.
    """
    decoded = _decode(path)
    pixels = _high_depth(decoded.colors, path).expand(-1, 3, -1, -1).contiguous() if decoded.deep else None
    return Picture(
        _to_tensor(decoded.colors) if pixels is None else pixels,
        None if decoded.alpha is None else _to_tensor(decoded.alpha),
        decoded.icc_profile,
        decoded.turned,
    )


def read_mask(path: str | os.PathLike) -> torch.Tensor:
    """Reads a mask: float32 [1, 1, H, W] in [0, 1], 1 = foreground.

    Where the file has an alpha channel that is not opaque all over, that is the mask; otherwise a pixel's brightest
    channel (so that a red or green mask on black counts as much as a white one). Errors as in `read_image`.
    """
    decoded = _decode(path, colors=False)
    return _high_depth(decoded.colors, path) if decoded.deep else _to_tensor(_matte(decoded))


def open_picture(path: str | os.PathLike, least_side: int = 0) -> Image.Image:
    """What `read_image` reads, without alpha, as a Pillow image of mode RGB.

    least_side: a JPEG may be decoded at a fraction of its size that keeps both sides at least so long, which is
    quicker; 0: never.
    """
    decoded = _decode(path, least_side)
    if decoded.deep:
        return Image.fromarray(to_bytes(_high_depth(decoded.colors, path))[:, :, 0]).convert("RGB")
    return decoded.colors


def open_mask(path: str | os.PathLike) -> Image.Image:
    """What `read_mask` reads, as a Pillow image of mode L."""
    decoded = _decode(path, colors=False)
    if decoded.deep:
        return Image.fromarray(to_bytes(_high_depth(decoded.colors, path))[:, :, 0])
    return _matte(decoded)


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """A picture file, not yet decoded, as Pillow opens it: the one gate through which every picture comes.

    Only regular files of the formats in FORMATS, found by their content, and of at most MAX_PIXELS are opened (TGA,
    whose content does not tell, by its name). Whatever is raised here or inside the block is the file's fault: an
    InputError that names it.
    """
    path = Path(path)
    formats = (*FORMATS, "TGA") if path.suffix.lower() == ".tga" else FORMATS
    with _regular_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; what matters is raised below
        try:
            with Image.open(file, formats=formats) as image:
                _check_size(path, image.size)
                yield image
        except InputError:
            raise
        except UnidentifiedImageError as error:
            raise InputError(
                f"{path} is not a picture that can be read (unknown format or damaged); give a PNG, JPEG, WebP or TIFF"
            ) from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{path} is too large: {error}; scale it down first") from error
        except MemoryError as error:
            raise InputError(f"{path} does not fit into memory; scale it down first") from error
        except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
            raise InputError(
                f"{path} is damaged or cut short and cannot be read ({error}); save or download it again"
            ) from error


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
    return _to_tensor(sheet)


def _regular_file(path: Path) -> io.BufferedReader:
    """The file, open for reading. InputError for no regular file, before a pipe could wait or a device do something."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        _check_regular(path, os.stat(path))
        file = open(path, "rb", opener=without_waiting)  # noqa: SIM115
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; check the name") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise InputError(f"{path} cannot be opened ({error}); check the name and the permissions") from error
    try:
        _check_regular(path, os.fstat(file.fileno()))  # it may have been exchanged meanwhile
    except InputError:
        file.close()
        raise
    return file


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a folder; expected a picture file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; expected a picture file")
    if status.st_size > MAX_BYTES:
        raise InputError(f"{path} is too large: {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if min(size) < 1:
        raise InputError(f"{path} has no pixels ({width}x{height}); save it again")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} is too large: {width}x{height}; at most {MAX_PIXELS // 1_000_000} megapixels are read,"
            " scale it down first"
        )


def _decode(path: str | os.PathLike, least_side: int = 0, colors: bool = True) -> _Decoded:
    """The first frame of a file. colors: False for a mask, whose numbers are no colours and follow no profile."""
    with opened(path) as image:
        if least_side:
            image.draft(None, (least_side, least_side))
        if getattr(image, "is_animated", False) and image.format != "MPO":
            logger.warning("%s has several frames; only the first is used", path)
            image.seek(0)
        stored = image.size
        with _libtiff_silenced() if image.format == "TIFF" else nullcontext():
            image.load()
        profile = _profile(image, path) if colors else None
        upright = _upright(image, path)
        if upright.mode.startswith("I") or upright.mode == "F":
            plain, alpha = upright, None
        else:
            plain, alpha = _channels(upright, profile)
        rgb = profile is not None and _profile_space(profile) == b"RGB "
        return _Decoded(plain, alpha, profile if rgb else None, upright.size != stored)


@contextmanager
def _libtiff_silenced() -> Iterator[None]:
    """libtiff writes what it finds wrong onto the process's stderr, beside the exception that Pillow raises."""
    try:
        stderr = os.dup(2)
    except OSError:  # a process without one
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _upright(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:  # metadata alone: the pixels are whole
        logger.warning("%s: its EXIF data cannot be read (%s); it is taken for upright", path, error)
        orientation = 1
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _channels(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, Image.Image | None]:
    """RGB, and alpha as L or None, of a picture of 8 bits a channel."""
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    return _to_rgb(image, profile), alpha


def _matte(decoded: _Decoded) -> Image.Image:
    """Mode L: the alpha channel where it says anything, else a pixel's brightest channel."""
    if decoded.alpha is not None and np.asarray(decoded.alpha).min() < 255:
        return decoded.alpha
    red, green, blue = decoded.colors.split()
    return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def _high_depth(image: Image.Image, path: str | os.PathLike) -> torch.Tensor:
    """A grey picture of 16 bits or of floating point, as [1, 1, H, W] in [0, 1]."""
    values = np.asarray(image).astype(np.float32)
    highest = 1 if image.mode == "F" else 65535
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > highest:
        raise InputError(
            f"{path} holds values from {values.min():g} to {values.max():g}; "
            f"a picture of mode {image.mode} must keep to 0..{highest}; save it with 8 or 16 bits a channel"
        )
    return torch.from_numpy(values / highest)[None, None]


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile | io.BytesIO) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return cast(Image.Image, converted)  # None only where it is done in place


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Any 8-bit mode as RGB; grey, CMYK and Lab through their profiles, since what goes out is RGB."""
    if image.mode in ("RGB", "RGBX", "P", "1"):
        return image.convert("RGB")
    try:
        if image.mode == "LAB":
            return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
        if profile is not None and (image.mode, _profile_space(profile)) in (("CMYK", b"CMYK"), ("L", b"GRAY")):
            return _converted(image, io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("the picture's colour profile cannot be used (%s); it is read without it", error)
    return image.convert("RGB")


def _profile(image: Image.Image, path: str | os.PathLike) -> bytes | None:
    """The file's ICC profile, or None where it has none or what stands there is none (a TIFF's may be of any type)."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    if isinstance(profile, bytes) and len(profile) <= LARGEST_PROFILE and profile[36:40] == b"acsp":
        return profile
    logger.warning("%s: its colour profile is damaged; it is read without it", path)
    return None


def _profile_space(profile: bytes) -> bytes:
    """The colour space an ICC profile is for: bytes 16–19 of its header."""
    return profile[16:20]


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


def _shorten(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The text as one line, with its end cut off where it does not fit the width."""
    text = printable(text).replace("\n", " ")
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
