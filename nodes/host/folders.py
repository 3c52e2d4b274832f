"""The folder of checkpoints among the host's models."""

import os

import folder_paths

FOLDER = "diffharmony"


def register_folder() -> None:
    """models/diffharmony, beside the folders that extra_model_paths.yaml names for it."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | {".safetensors"})


def folders() -> list[str]:
    """Where checkpoints are looked for, the first first."""
    return folder_paths.get_folder_paths(FOLDER)
