"""What is scored: baselines in every run, and the results of a checkpoint or pictures made by anything."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from .. import color, settings
from ..devices import find_device
from ..endings import ENDINGS
from ..errors import InputError
from ..files import images
from ..files.iharmony import COMPOSITES, Triple
from .report import BASELINE
from .scoring import Pair

TRANSFERS = {"reinhard": color.reinhard, "monge-kantorovitch": color.monge_kantorovitch}
METHODS = ("colors", "both", "diffusion")
USUAL_ENDINGS = ("transfer", "paper")
OUTPUTS = "outputs"

Results = Iterator[tuple[str, torch.Tensor | Exception]]
"""(row of the tables, picture or what went wrong)."""


class Source(Protocol):
    """about: half a sentence on it. methods: its rows of the tables."""

    about: str

    @property
    def methods(self) -> Sequence[str]: ...

    def results(self, pair: Pair) -> Results: ...


def baselines(pair: Pair) -> Results:
    """The composite as it is, and the background's colours given to the foreground by Reinhard's transfer and by that
    of Monge and Kantorovitch."""
    yield BASELINE, pair.composite
    for name, transfer in TRANSFERS.items():
        try:
            result = transfer(pair.composite, pair.composite, pair.mask, 1 - pair.mask)
        except Exception as error:
            result = error
        yield name, result


class Pictures:
    """Results that another run or method has written: one picture a composite, named after it, in any format."""

    methods = (OUTPUTS,)

    def __init__(self, folder: Path, triples: Sequence[Triple]):
        """Takes `FOLDER/<stem>.<any>` or `FOLDER/<subset>/<stem>.<any>`, with or without composite_images between."""
        if not folder.is_dir():
            raise InputError(f"No folder {folder}; --outputs takes a folder of pictures named as the composites")
        self.about = f"pictures of {folder}"
        self._folder = folder
        self._files: dict[tuple[str, str], list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in images.READABLE and path.is_file():
                inside = [part for part in path.relative_to(folder).parts[:-1] if part != COMPOSITES]
                self._files.setdefault(("/".join(inside), path.stem), []).append(path)
        subsets: dict[str, set[str]] = {}
        for triple in triples:
            subsets.setdefault(triple.composite.stem, set()).add(triple.subset)
        self._in_several = {stem for stem, names in subsets.items() if len(names) > 1}

    def results(self, pair: Pair) -> Results:
        try:
            result = images.read_image(self._find(pair.triple)).pixels
        except Exception as error:
            result = error
        yield OUTPUTS, result

    def _find(self, triple: Triple) -> Path:
        stem = triple.composite.stem
        found = self._files.get((triple.subset, stem), [])
        if not found:
            found = self._files.get(("", stem), [])
            if found and stem in self._in_several:
                raise InputError(
                    f"{found[0]} could belong to several subsets; put it into a folder named {triple.subset}"
                )
        if not found:
            raise InputError(f"no picture {stem}.* in {self._folder} nor in {self._folder / triple.subset}")
        if len(found) > 1:
            raise InputError(f"{len(found)} pictures for {stem}: {', '.join(path.name for path in found)}; keep one")
        return found[0]


class Engine:
    """Results of a checkpoint, by each method, and of stage 1 by each ending."""

    def __init__(
        self,
        checkpoint: Path | None = None,
        methods: Sequence[str] = (),
        endings: Sequence[str] = (),
        harmonizing: settings.Settings | None = None,
    ):
        """checkpoint: None is the bundled one. methods, endings: those that are scored; none: `METHODS` and
        `USUAL_ENDINGS`, as far as there are parts for them. harmonizing: all else that is chosen. In float32, so that
        figures do not depend on the device. InputError at once for a checkpoint that cannot harmonize: a part missing,
        NaN in its weights.
        """
        from .. import checkpoint as checkpoints
        from .. import pipeline

        self._settings = harmonizing or settings.Settings()
        weights = checkpoints.read(checkpoint or checkpoints.bundled())
        self._engine = pipeline.DiffHarmony.from_checkpoint(weights, device=find_device("auto"), dtype=torch.float32)
        chosen = tuple(dict.fromkeys(methods or self._possible()))
        self._endings = self._chosen_endings(endings)
        self.about = f"checkpoint {weights.name}"
        if chosen != ("colors",):
            resolution, steps = self._settings.resolution or weights.resolution, self._settings.steps or weights.steps
            self.about += f", resolution {resolution}, {steps} steps"
        self._rows = {
            method: ["colors"] if method == "colors" else [f"{method}+{ending}" for ending in self._endings]
            for method in chosen
        }
        self.methods = [row for rows in self._rows.values() for row in rows]
        for method in chosen:  # what one small picture shows need not fail on each of thousands
            trial = torch.full((1, 3, 64, 64), 0.5)
            self._run(method, trial, torch.ones(1, 1, 64, 64), replace(self._settings, resolution=64, steps=1))

    def results(self, pair: Pair) -> Results:
        own = self._settings.for_picture(pair.triple.composite.stem)
        for method, rows in self._rows.items():
            try:
                yield from self._run(method, pair.composite, pair.mask, own).items()
            except Exception as error:
                failure = error
                if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
                    failure = InputError(f"needs more memory than there is ({error}); give a smaller --resolution")
                yield from dict.fromkeys(rows, failure).items()

    def _run(
        self, method: str, composite: torch.Tensor, mask: torch.Tensor, settings: settings.Settings
    ) -> dict[str, torch.Tensor]:
        """The results of one method by the rows' names; all endings start from the same decoded picture."""
        engine = self._engine
        start = composite
        if method != "diffusion":
            start = engine(composite, mask, replace(settings, method="colors")).refined
        if method == "colors":
            return {method: start}
        latents = engine.harmonize_latents(start, mask, settings)
        decoded = engine.decode(latents, start, mask, settings.decoder).to(start.device)
        return {
            f"{method}+{ending}": engine.finish(decoded, start, mask, replace(settings, ending=ending))
            for ending in self._endings
        }

    def _possible(self) -> list[str]:
        """The methods that the checkpoint has parts for; where it has none, one whose parts will be missed."""
        colors, stages = self._engine.color_regressor is not None, self._engine.unet is not None
        return [
            method for method, possible in zip(METHODS, (colors, colors and stages, stages or not colors)) if possible
        ]

    def _chosen_endings(self, wanted: Sequence[str]) -> tuple[str, ...]:
        there = self._engine.refiner is not None
        missed = [ending for ending in wanted if ENDINGS[ending].refines and not there]
        if missed:
            raise InputError(
                f"{self._engine.name} has no refiner, which --ending {missed[0]} needs; give --ending transfer, or"
                " train one with `train-refiner`"
            )
        return tuple(wanted) or tuple(name for name in USUAL_ENDINGS if there or not ENDINGS[name].refines)
