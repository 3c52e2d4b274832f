"""The checkpoints that a folder of models offers, by name, and where a name leads.

A name is the path below one of the folders, with "/": a .safetensors file, or a folder with a harmonizing UNet (a diffusers
pipeline such as the published base/, or parts side by side). What lies beside a pipeline (refiner, Harmony-VAE) comes with
it; the inverse model is not shown.
"""

import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..diffharmony_models import checkpoint, checkpoint_folders
from ..diffharmony_models.checkpoint_parts import kind_of_config

BUNDLED = "diffharmony-small (bundled)"
_DEPTH = 4


def names(folders: list[str]) -> list[str]:
    """All there is, the bundled checkpoint first."""
    found = {name for folder in folders if os.path.isdir(folder) for name in _below(Path(folder), "", _DEPTH)}
    return [BUNDLED, *sorted(found, key=str.casefold)]


def resolve(name: str, folders: list[str]) -> Path:
    """Where a name leads. ValueError, in words, for one that leaves the folders or is not there."""
    if name == BUNDLED:
        return checkpoint.bundled()
    path = PurePosixPath(name.replace("\\", "/"))
    where = " or ".join(folders)
    if not name or path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise ValueError(
            f'"{name}" leaves the folder of DiffHarmony\'s checkpoints. Put the checkpoint into {where} and choose it from the list.'
        )
    there = names(folders)
    for folder in folders if str(path) in there else ():
        if (Path(folder) / path).exists():
            return Path(folder) / path
    raise ValueError(
        f'There is no checkpoint "{name}". Put its file, or the unpacked zip of the published weights (github.com/nicecv/DiffHarmony), '
        f"into {where}, press R, and choose it. There is: {', '.join(there)}."
    )


def fingerprint(path: Path) -> list:
    """Changes when a file that belongs to the checkpoint does: name, size and time of each."""
    files = [path]
    if path.is_dir():
        parts, unit = checkpoint_folders.choose(path, checkpoint_folders.find(path))
        files = [file for part in parts.values() for file in (*part.files, part.where / "config.json")]
        files.append(unit / "scheduler" / "scheduler_config.json")
    stats = [(str(file), file.stat()) for file in sorted(files) if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _below(folder: Path, prefix: str, depth: int) -> list[str]:
    """The names in a folder that is no checkpoint itself."""
    found, single, pipelines = [], [], False
    for entry in sorted(folder.iterdir()):
        name = f"{prefix}{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_file() and entry.suffix == ".safetensors":
            found.append(name)
        elif entry.is_dir():
            if (entry / "model_index.json").is_file():
                if (entry / "unet").is_dir():
                    found.append(name)
                    pipelines = True
            elif _kind(entry) == "unet" or any(_kind(child) == "unet" for child in entry.iterdir() if child.is_dir()):
                found.append(name)
            elif _kind(entry) is not None:
                single.append(name)
            elif depth:
                found += _below(entry, f"{name}/", depth - 1)
    # A refiner beside a pipeline belongs to it; elsewhere it can be meant for itself.
    return found if pipelines else found + single


def _kind(folder: Path) -> str | None:
    """The kind of part that a folder's config.json describes."""
    try:
        content = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return kind_of_config(content) if isinstance(content, dict) else None
