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


def output_file(prefix: str, extension: str) -> str:
    """A new file of the output folder, numbered as the host numbers its pictures. prefix: as in SaveImage, with
    folders and all; the host refuses one that leads out of the output folder."""
    folder, name, number, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return os.path.join(folder, f"{name}_{number:05}_{extension}")
