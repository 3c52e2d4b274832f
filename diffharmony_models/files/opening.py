"""The gate through which every picture file comes: what is opened at all, and what is refused."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""The formats that are opened, by Pillow's names. Others, some of which start a program (EPS), are never tried."""

MAX_PIXELS = 178_956_970
"""The largest picture read or written, in pixels: where Pillow, too, speaks of a decompression bomb."""

MAX_BYTES = 8 * MAX_PIXELS
"""The largest file read: that many pixels, not compressed, with 16 bits in each of four channels."""


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
