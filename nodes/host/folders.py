"""The folders of checkpoints among the host's models: what they offer by name, and where a name leads.

A name is the path below one of the folders, with "/"; see `checkpoint.folders` for what is offered.
"""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...diffharmony_models import checkpoint
from ...diffharmony_models.checkpoint import folders as rules
from ...diffharmony_models.checkpoint.rules import few
from ...diffharmony_models.errors import InputError

FOLDER = "diffharmony"
BUNDLED = "diffharmony-small (bundled)"

_listed: dict[str, tuple[list[str], dict[str, int | None]]] = {}  # of each folder, see `rules.below`


def register_folder() -> None:
    """models/diffharmony, beside the folders that extra_model_paths.yaml names for it."""
    import folder_paths

    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | {".safetensors"})


def folders() -> list[str]:
    """Where checkpoints are looked for, the first first."""
    import folder_paths

    return folder_paths.get_folder_paths(FOLDER)


def names() -> list[str]:
    """All there is, the bundled checkpoint first. A folder in which nothing has changed is not looked through again:
    the host asks for this at each queueing."""
    found = {name for folder in folders() if os.path.isdir(folder) for name in _below(folder)}
    return [BUNDLED, *sorted(found, key=str.casefold)]


def resolve(name: str) -> Path:
    """Where a name leads. InputError for one that leaves the folders or is no checkpoint's. Looks at that path only."""
    if name == BUNDLED:
        return checkpoint.bundled()
    path = PurePosixPath(name.replace("\\", "/"))
    where = " or ".join(folders())
    if not path.parts or path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise InputError(
            f'"{name}" leaves the folder of DiffHarmony\'s checkpoints. Put the checkpoint into {where} and choose it '
            "from the list."
        )
    for folder in folders():
        if rules.is_checkpoint(Path(folder) / path):
            return Path(folder) / path
    raise InputError(
        f'There is no checkpoint "{name}". Put its file, or the unpacked zip of the published weights '
        f"(github.com/nicecv/DiffHarmony), into {where}, press R, and choose it. There is: {few(names())}."
    )


def fault(name: str | None) -> str | None:
    """What is wrong with a name that a graph gives; None for one that leads somewhere, or that comes by wire."""
    try:
        if name is not None:
            resolve(name)
    except InputError as error:
        return str(error)
    return None


def fingerprint(name: str | None) -> list | str | None:
    """Changes when a file that belongs to the checkpoint does: name, size and time of each. What is wrong where the
    name leads nowhere; None for one that comes by wire."""
    try:
        files = rules.sources(resolve(name)) if name else []
        return [[str(file), stat.st_size, stat.st_mtime_ns] for file in files if (stat := file.stat())] or None
    except (InputError, OSError) as error:
        return str(error)


def _below(folder: str) -> list[str]:
    found, seen = _listed.get(folder, ([], {}))
    if not seen or any(rules.changed(path) != time for path, time in seen.items()):
        found, seen = _listed[folder] = rules.below(Path(folder))
    return found


def output_file(prefix: str, extension: str) -> str:
    """A new file of the output folder, numbered as the host numbers its pictures. prefix: as in SaveImage, with
    folders and all; the host refuses one that leads out of the output folder."""
    import folder_paths

    folder, name, number, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return os.path.join(folder, f"{name}_{number:05}_{extension}")
