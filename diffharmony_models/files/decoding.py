"""Picture files of any mode that Pillow opens, as Pillow images of mode RGB and L, upright."""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image, ImageChops, ImageCms

from ..errors import InputError
from .opening import opened

logger = logging.getLogger(__name__)

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
class Decoded:
    """A file's first frame, upright.

    colors: mode RGB; alpha: mode L, or None where the file has none; deep: what a grey picture of 16 bits or of
    floating point holds, float32 [H, W] in [0, 1], or None; icc_profile: the RGB profile of the colours, or None;
    turned: whether the EXIF orientation made its width its height.
    """

    colors: Image.Image
    alpha: Image.Image | None
    deep: np.ndarray | None
    icc_profile: bytes | None
    turned: bool

    def matte(self) -> Image.Image:
        """Mode L: the alpha channel where it is not opaque all over, else a pixel's brightest channel."""
        if self.alpha is not None and np.asarray(self.alpha).min() < 255:
            return self.alpha
        red, green, blue = self.colors.split()
        return ImageChops.lighter(ImageChops.lighter(red, green), blue)


def open_picture(path: str | os.PathLike, least_side: int = 0) -> Image.Image:
    """What `images.read_image` reads, without alpha, as a Pillow image of mode RGB.

    least_side: a JPEG may be decoded at a fraction of its size that keeps both sides at least so long, which is
    quicker; 0: never.
    """
    return decode(path, least_side).colors


def open_mask(path: str | os.PathLike) -> Image.Image:
    """What `images.read_mask` reads, as a Pillow image of mode L."""
    return decode(path, colors=False).matte()


def decode(path: str | os.PathLike, least_side: int = 0, colors: bool = True) -> Decoded:
    """Opens and decodes a file; see `open_picture` for `least_side`.

    colors: False for a mask, whose numbers are no colours and follow no profile. InputError, which names the file, for
    whatever is wrong with it.
    """
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
        deep, alpha = None, None
        if upright.mode.startswith("I") or upright.mode == "F":
            deep = _high_depth(upright, path)
            plain = Image.fromarray((deep * 255).round().astype(np.uint8)).convert("RGB")
        else:
            plain, alpha = _channels(upright, profile)
        rgb = profile is not None and _profile_space(profile) == b"RGB "
        return Decoded(plain, alpha, deep, profile if rgb else None, upright.size != stored)


def _high_depth(image: Image.Image, path: str | os.PathLike) -> np.ndarray:
    """A grey picture of 16 bits or of floating point, as float32 [H, W] in [0, 1]."""
    values = np.asarray(image).astype(np.float32)
    highest = 1 if image.mode == "F" else 65535
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > highest:
        raise InputError(
            f"{path} holds values from {values.min():g} to {values.max():g}; "
            f"a picture of mode {image.mode} must keep to 0..{highest}; save it with 8 or 16 bits a channel"
        )
    return values / np.float32(highest)


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


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile | io.BytesIO) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return cast(Image.Image, converted)  # None only where it is done in place


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
