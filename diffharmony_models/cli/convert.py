"""The `convert` command: one weight file of a published folder, or of another file."""

import argparse
import os

from .. import checkpoint
from ..errors import InputError
from .arguments import dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the published folder (any level of it), or a weight file")
    parser.add_argument("out", metavar="OUT.safetensors", help="the file to write")
    parser.add_argument(
        "--dtype", metavar="T", type=dtype, help="float32, bfloat16 or float16, fp16 for short (default: as it is)"
    )


def run(args: argparse.Namespace) -> int:
    """Reads, writes, and prints what was found."""
    if not args.out.endswith(".safetensors"):
        raise InputError(f"{args.out}: expected a name that ends in .safetensors")
    print(checkpoint.describe(checkpoint.convert(args.source, args.out, args.dtype)))
    print(f"written: {args.out}, {os.path.getsize(args.out) / 1e6:.1f} MB")
    return 0
