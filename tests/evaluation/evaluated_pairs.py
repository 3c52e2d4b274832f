"""Pairs in the layout of iHarmony4, and the command that scores them."""

import argparse
import csv

import numpy as np
from PIL import Image

from diffharmony_models.cli import evaluate as cli
from diffharmony_models.files import iharmony

SHARES = {
    "First/composite_images/a_1_1.png": 0.04,
    "First/composite_images/a_2_1.png": 0.25,
    "Second/composite_images/b_x_1_7.png": 0.0625,
}


BASELINES = ["composite", "reinhard", "monge-kantorovitch"]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def evaluated(root, *options):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    results = root.parent / "results"
    return cli.run(parser.parse_args([str(root), "--results", str(results), *map(str, options)])), results


def perfect_outputs(root):
    folder = root.parent / "made"
    for triple in iharmony.pairs(root, "IHD_test.txt"):
        save(folder / f"{triple.composite.stem}.jpg", np.asarray(Image.open(triple.real)))
    return folder


def untouched_outputs(dataset):
    folder = dataset.parent / "made"
    for entry in SHARES:
        save(folder / (dataset / entry).name, np.asarray(Image.open(dataset / entry)))
    return folder


def table(path, key=None):
    """The rows of a CSV file by two of their columns (the first two)."""
    with open(path, newline="", encoding="utf-8") as file:
        return {
            tuple(row[name] for name in key) if key else tuple(row.values())[:2]: row for row in csv.DictReader(file)
        }
