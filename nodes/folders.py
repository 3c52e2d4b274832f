"""The checkpoints that a folder of models offers, by name, and where a name leads.

A name is the path below one of the folders, with "/": a .safetensors file, or a folder with a harmonizing UNet (a
diffusers pipeline such as the published base/, or parts side by side). What lies beside a pipeline (refiner,
Harmony-VAE) comes with it; the inverse model is not shown.
"""

import logging
import os
from collections import deque
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..diffharmony_models import checkpoint
from ..diffharmony_models.checkpoint import folders as checkpoint_folders
from ..diffharmony_models.checkpoint.configs import few
from ..diffharmony_models.checkpoint.files import entries
from ..diffharmony_models.checkpoint.parts import kind_of_config
from ..diffharmony_models.errors import InputError

logger = logging.getLogger(__name__)

BUNDLED = "diffharmony-small (bundled)"
_DEPTH = 4
_MOST_ENTRIES = 50_000  # below one models folder: a list that takes longer to make stops the page


def names(folders: list[str]) -> list[str]:
    """All there is, the bundled checkpoint first."""
    found = {name for folder in folders if os.path.isdir(folder) for name in _below(Path(folder))}
    return [BUNDLED, *sorted(found, key=str.casefold)]


def resolve(name: str, folders: list[str]) -> Path:
    """Where a name leads. ValueError, in words, for one that leaves the folders or is not there."""
    if name == BUNDLED:
        return checkpoint.bundled()
    path = PurePosixPath(name.replace("\\", "/"))
    where = " or ".join(folders)
    if not name or path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise InputError(
            f'"{name}" leaves the folder of DiffHarmony\'s checkpoints. Put the checkpoint into {where} and choose it '
            "from the list."
        )
    there = names(folders)
    for folder in folders if str(path) in there else ():
        if (Path(folder) / path).exists():
            return Path(folder) / path
    raise InputError(
        f'There is no checkpoint "{name}". Put its file, or the unpacked zip of the published weights '
        "(github.com/nicecv/DiffHarmony), "
        f"into {where}, press R, and choose it. There is: {few(there)}."
    )


def fingerprint(path: Path) -> list:
    """Changes when a file that belongs to the checkpoint does: name, size and time of each."""
    files = checkpoint_folders.sources(path)
    stats = [(str(file), file.stat()) for file in files if os.path.isfile(file)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def fault(name: str | None, folders: list[str]) -> str | None:
    """What is wrong with a name that a graph gives; None for one that leads somewhere, or that comes by wire."""
    try:
        if name is not None:
            resolve(name, folders)
    except InputError as error:
        return str(error)
    return None


def fingerprint_of(name: str | None, folders: list[str]) -> list | str | None:
    """As `fingerprint`, of a name; what is wrong where it leads nowhere."""
    try:
        return fingerprint(resolve(name, folders)) if name else None
    except (InputError, OSError) as error:
        return str(error)


def _below(root: Path) -> list[str]:
    """The names in a folder of models, which is no checkpoint itself. What cannot be read there is left out.

    Level by level, so that where there is too much it is the deepest that is not seen. No folder is entered twice, and
    links are entered last: where there are two ways to one, it has the name of the straight one.
    """
    found, left, judged = [], _MOST_ENTRIES, {}

    def listed(folder: Path) -> list[Path]:
        nonlocal left
        try:
            there = entries(folder) if left > 0 and os.path.isdir(folder) else []
        except InputError as error:
            logger.warning("Left out of the list of checkpoints: %s", error)
            there = []
        left -= len(there) if folder != root else 0
        return there

    def has_unet(folder: Path) -> bool:
        real = os.path.realpath(folder)
        if real not in judged:
            judged[real] = "unet" in map(_kind, listed(folder))
        return judged[real]

    waiting = deque([(root, "", _DEPTH)])
    links: deque[tuple[Path, str, int]] = deque()
    entered: set[str] = set()
    while waiting or links:
        folder, prefix, depth = (waiting or links).popleft()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        single, pipelines = [], False
        for entry in listed(folder):
            name = f"{prefix}{entry.name}"
            if not _is_text(name):
                continue
            if os.path.isfile(entry):
                found += [name] if entry.suffix == ".safetensors" else []
            elif os.path.isfile(entry / "model_index.json"):
                if os.path.isdir(entry / "unet"):
                    found.append(name)
                    pipelines = True
            elif (kind := _kind(entry)) not in (None, "unet"):
                single.append(name)
            elif kind == "unet" or has_unet(entry):
                found.append(name)
            elif depth and os.path.isdir(entry):
                (links if os.path.islink(entry) else waiting).append((entry, f"{name}/", depth - 1))
        # A refiner beside a pipeline belongs to it; elsewhere it can be meant for itself.
        found += [] if pipelines else single
    if left <= 0:
        logger.warning("%s holds too much to look at all of it; put checkpoints into its upper folders.", root)
    return found


def _kind(folder: Path) -> str | None:
    """The kind of part that a folder's config.json describes."""
    try:
        return kind_of_config(checkpoint_folders.config_of(folder) or {})
    except InputError:
        return None


def _is_text(name: str) -> bool:
    """Whether a page can show the name: not where its bytes are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
