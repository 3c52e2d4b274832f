"""The errors that are the input's fault, and how errors are told."""

import errno
import logging
import re

LONGEST = 1200
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class InputError(ValueError):
    """What came in cannot be used. The message says what came, what was expected and what to do.

    The command line shows it as one line with exit code 2; every other exception is a fault of the program and keeps
    its traceback.
    """


def disk_full(error: BaseException) -> bool:
    """Whether the disk takes no more, so that every further file would fail too."""
    return isinstance(error, OSError) and error.errno in _DISK


def one_line(error: Exception) -> str:
    """An error as one line of printable text, at most LONGEST letters. OSErrors name their file, faults of the program
    their type."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    else:
        text = str(error)
    if not text or not isinstance(error, (InputError, OSError)):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    text = printable(re.sub(r"\s*\n\s*", " ", text.strip()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 400]} … {text[-397:]}"


def printable(text: str) -> str:
    """The text with what no terminal should get (control characters, bytes of a name that are no UTF-8) escaped."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def reason(error: Exception, logger: logging.Logger) -> str:
    """Why one of many pictures failed, as one line. The traceback of a fault of the program goes into the log."""
    if not isinstance(error, (InputError, OSError)):
        logger.error("this should not have happened; please report it:", exc_info=error)
    return one_line(error)
