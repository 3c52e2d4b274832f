"""The change of colour as a file that other programs read."""

import logging
from pathlib import Path

from comfy_api.v0_0_2 import io

from ..diffharmony_models import lut as engine
from ..diffharmony_models.errors import InputError
from . import doubts, schema
from .host import folders, running

logger = logging.getLogger(__name__)

NODE = "SaveColorLUT"


class SaveColorLUT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE,
            display_name="Save Color LUT",
            category=schema.CATEGORY,
            description=(
                "Saves a change of colour as a look-up table (.cube, 33 steps) into the output folder; Resolve, "
                "Premiere, Photoshop and Nuke read it. One file for each picture."
            ),
            search_aliases=["cube", "3d lut", "color grading", "export lut", "look-up table"],
            is_output_node=True,
            inputs=[
                schema.DiffHarmonyColors.Input(
                    "colors", tooltip="The colors of Harmonize Colors or Transfer to Full Resolution."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="diffharmony",
                    tooltip="What the file's name begins with; a number follows. Folders as in Save Image: looks/dusk.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, colors: engine.Colors | None, filename_prefix: str) -> io.NodeOutput:
        if not isinstance(colors, engine.Colors):
            raise InputError(f"{NODE} got no colors, but {type(colors).__name__}. Wire those of HarmonizeColors.")
        said, notes = [], []
        for number in range(len(colors.composite)):
            found = engine.of_picture(colors, number)
            if found is None:
                continue
            table, rest = found
            path = Path(folders.output_file(filename_prefix, ".cube"))
            engine.write(path, table, path.stem)
            said.append(f"{path.name}: {rest}")
            notes += doubts.of_lut(rest)
        if not said:
            raise InputError(f"{NODE}: no picture has a foreground, so there is no change of colour to save.")
        for line in said:
            logger.info("%s: %s", NODE, line)
        return io.NodeOutput(ui={"text": tuple(said), **(running.warn(NODE, notes[:1]) or {})})
