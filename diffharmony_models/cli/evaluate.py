"""The `evaluate` command."""

import argparse
from collections.abc import Sequence

from .. import settings
from ..endings import ENDINGS
from ..evaluation.runs import Settings, evaluate
from ..evaluation.sources import METHODS, Engine, Pictures, Source
from ..files.iharmony import Triple
from ..numbers import whole
from .arguments import file_or_folder, refuse, resolution, steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s DATASET [options]"
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        type=file_or_folder,
        help="folder in iHarmony4's layout (composite_images, masks, real_images by subset)",
    )
    parser.add_argument(
        "--list",
        type=file_or_folder,
        default=Settings.pairs,
        help="the list of composites: a path from the root, or any path (%(default)s)",
    )
    parser.add_argument(
        "--results",
        type=file_or_folder,
        default=Settings.results,
        help="folder for tables and the worst cases (%(default)s)",
    )
    parser.add_argument("--limit", type=whole(1), metavar="N", help="only the first N pairs of the list")
    parser.add_argument(
        "--native-size",
        action="store_true",
        help="harmonize and score at the pictures' own size too, in tables of their own",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--outputs",
        type=file_or_folder,
        metavar="FOLDER",
        help="score these pictures (named as the composites), run no checkpoint",
    )
    what.add_argument("--checkpoint", type=file_or_folder, metavar="C", help="file or folder (the bundled checkpoint)")
    run = parser.add_argument_group("running a checkpoint", argument_default=argparse.SUPPRESS)
    run.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        help="colors: the colour regressor; diffusion: the paper's stages; both: one after the other. The worst cases "
        "are the first one's (all that the checkpoint has parts for)",
    )
    run.add_argument(
        "--ending",
        nargs="+",
        choices=tuple(ENDINGS),
        help="of the stages (transfer and, where there is a refiner, paper)",
    )
    run.add_argument("--resolution", metavar="R", type=resolution, help="stage 1's resolution (the checkpoint's own)")
    run.add_argument("--steps", metavar="N", type=steps, help="sampling steps (the checkpoint's own)")


def run(args: argparse.Namespace) -> int:
    """Returns the exit code; see `evaluation.runs.evaluate`."""
    options = vars(args)

    def source(triples: Sequence[Triple]) -> Source:
        if args.outputs is not None:
            why = "with --outputs no checkpoint runs; leave it out"
            refuse(options, ("method", "ending", "resolution", "steps"), why)
            return Pictures(args.outputs, triples)
        chosen = {name: options[name] for name in ("resolution", "steps") if name in options}
        engine = Engine(
            args.checkpoint,
            options.get("method", ()),
            options.get("ending", ()),
            settings.Settings(**chosen),
        )
        if engine.methods == ["colors"]:
            refuse(options, ("ending", "resolution", "steps"), "the method colors has no use for it; leave it out")
        return engine

    return evaluate(Settings(args.dataset, args.list, args.results, args.limit, args.native_size), source)
