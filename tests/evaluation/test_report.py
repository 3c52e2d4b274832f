"""Lists of pairs, and tables."""

import math

import numpy as np
import pytest
import torch
from evaluated_pairs import SHARES
from PIL import Image

from diffharmony_models.evaluation import report
from diffharmony_models.files import iharmony


def test_pairs_of_a_list(dataset):
    triples = iharmony.pairs(dataset, "IHD_test.txt")
    assert [triple.subset for triple in triples] == ["First", "First", "Second"]
    assert triples[2].mask == dataset / "Second" / "masks" / "b_x_1.png"
    assert triples[2].real == dataset / "Second" / "real_images" / "b_x.png"  # not .jpg: it exists under this name
    assert all(path.is_file() for triple in triples for path in triple[:3])
    (dataset / "jpeg.txt").write_text("HCOCO/composite_images/c100_1_1.jpg")
    assert iharmony.pairs(dataset, dataset / "jpeg.txt")[0].real == dataset / "HCOCO" / "real_images" / "c100.jpg"


@pytest.mark.parametrize(
    "line",
    [
        "c100_1_1.jpg",
        "HCOCO/real_images/c100_1_1.jpg",
        "HCOCO/composite_images/c100_1.jpg",
        "../composite_images/c_1_1.jpg",
    ],
)
def test_a_line_of_another_naming_is_named(dataset, line):
    (dataset / "bad.txt").write_text(f"{next(iter(SHARES))}\n\n{line}\n")
    with pytest.raises(ValueError, match=r"bad\.txt, line 3"):
        iharmony.pairs(dataset, "bad.txt")


def test_lists_and_folders_that_are_not_there(dataset):
    with pytest.raises(ValueError, match="No data set folder"):
        iharmony.pairs(dataset / "nowhere", "IHD_test.txt")
    with pytest.raises(ValueError, match=r"No list nothing.txt.*IHD_test.txt"):
        iharmony.pairs(dataset, "nothing.txt")
    (dataset / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="names no picture"):
        iharmony.pairs(dataset, "empty.txt")


@pytest.mark.parametrize(
    ("share", "name"),
    [(0, "0–5 %"), (0.0499, "0–5 %"), (0.05, "5–15 %"), (0.1499, "5–15 %"), (0.15, "15–100 %"), (1, "15–100 %")],
)
def test_buckets_have_their_lower_edge(share, name):
    assert report.bucket(share) == name


def test_bucket_of_a_number_that_is_no_share():
    with pytest.raises(ValueError, match="from 0 to 1"):
        report.bucket(4.0)


def test_worst_cases_are_the_ten_worst_in_order(tmp_path):
    log = report.Report(["x"], ranked_by="x")
    for fmse in [5, 1, 30, 7, 2, 9, 11, 3, 4, 8, 6, 10]:
        log.offer_sheet_row(fmse, lambda fmse=fmse: [("x", torch.full((1, 3, 256, 256), fmse / 255))])
    log.write(tmp_path, "A test.")
    sheet = Image.open(tmp_path / "worst.png")
    column = np.asarray(sheet)[:, 255, 0]  # right of all text
    shown = [int(value) for value, before in zip(column[1:], column[:-1]) if value != before and value in range(1, 31)]
    assert shown == [30, 11, 10, 9, 8, 7, 6, 5, 4, 3]


def test_comparisons_with_the_composite():
    """On the pairs that both have: the ratio of the averages, the worst gain, the number of worse ones."""
    log = report.Report(["composite", "x"], ranked_by="x")
    psnr = {"composite": [20, 30, 25, 40], "x": [26, 27, math.inf, None]}
    fmse = {"composite": [100, 10, 40, 1000], "x": [20, 40, 0, None]}
    for method, values in psnr.items():
        for number, value in enumerate(values):
            if value is not None:
                error = fmse[method][number]
                log.scores.append(report.Score(f"{number}", "S", 0.1, method, "256", value, 1, error, 1, 1))
    log.missing.append(report.Missing("3", "S", 0.1, "x", "256", "lost"))
    rows = {row[1]: row for row in log._averages([], lambda line: None)}
    columns = dict(zip(report.COLUMNS, rows["x"][5:]))
    assert columns["fmse_ratio"] == pytest.approx(60 / 150)
    assert (columns["worst"], columns["worse"], columns["psnr"]) == (-3, 1, pytest.approx((26 + 27 + 100) / 3))
    columns = dict(zip(report.COLUMNS, rows["composite"][5:]))
    assert (columns["fmse_ratio"], columns["worst"], columns["worse"]) == (1, 0, 0)
