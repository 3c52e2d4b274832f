"""Files that are written beside their place and moved there once they are whole."""

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: str | os.PathLike, lasting: bool = True) -> Iterator[Path]:
    """Gives the path to write to, in the same folder, which is made; at the end of the block that file becomes `path`.

    On any failure nothing of it stays, and a file that was there before stays as it was. OSError says which file could
    not be written and why (no room, no permission, …). lasting: the content is on the disk before it takes the name, so
    that it outlives a loss of power too; that takes some milliseconds.
    """
    path = Path(path)
    unfinished = path.with_name(f".{_stem(path.name)}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(unfinished):
            yield unfinished
        if lasting:
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        words = "no room on the disk to write" if full else f"cannot write ({error.strerror})"
        raise OSError(error.errno, words, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def write_bytes(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Writes a small file, such as a picture; see `replacing`."""
    with replacing(path, lasting=False) as unfinished:
        unfinished.write_bytes(content)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes the unfinished files in a folder that nobody is writing any more: those of killed runs.

    name: only those that were to become this file.
    """
    for left in folder.glob(f".{glob.escape(_stem(name)) if name else '*'}.*.part"):
        with contextlib.suppress(OSError):
            with open(left, "rb") as file:
                _lock(file)
            left.unlink()


def _stem(name: str) -> str:
    return name[:60]  # of at most 4 bytes each: a whole name may be as long as the system allows, 255


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Makes an empty file that others know is being written. On Windows they know it by itself."""
    if fcntl is None:
        yield
        return
    with open(path, "wb") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            _lock(file)
        yield


def _lock(file: IO[bytes]) -> None:
    """Marks a file as one that somebody is writing, as long as it is open. OSError where another process does."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
