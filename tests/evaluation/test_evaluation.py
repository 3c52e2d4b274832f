"""The evaluation of pictures made by anything, and of the baselines."""

import json

import numpy as np
import pytest
import torch
from evaluated_pairs import BASELINES, SHARES, evaluated, perfect_outputs, save, table, untouched_outputs
from PIL import Image

from diffharmony_models import color
from diffharmony_models.__main__ import main
from diffharmony_models.errors import InputError
from diffharmony_models.evaluation import scoring as evaluate
from diffharmony_models.evaluation import sources
from diffharmony_models.files import iharmony, images


def test_tables_of_perfect_outputs(dataset, capsys):
    code, results = evaluated(dataset, "--outputs", perfect_outputs(dataset))
    assert code == 0
    printed = capsys.readouterr().out
    assert all(
        text in printed for text in ("# By subset", "# By foreground share", "## At 256×256", "| all | outputs |")
    )

    by_subset = table(results / "by_subset.csv")
    assert list(by_subset) == [(g, m) for g in ("First", "Second", "all") for m in (*BASELINES, "outputs")]
    assert by_subset["First", "outputs"]["images"] == "2" and by_subset["all", "outputs"]["images"] == "3"
    assert all(float(row["psnr"]) > 35 for (_, method), row in by_subset.items() if method == "outputs")
    assert all(float(row["psnr"]) < 30 for (_, method), row in by_subset.items() if method == "composite")
    assert float(by_subset["all", "reinhard"]["fmse"]) != float(by_subset["all", "composite"]["fmse"])
    by_share = table(results / "by_share.csv")
    assert [by_share[name, "outputs"]["images"] for name in ("0–5 %", "5–15 %", "15–100 %", "all")] == [
        "1",
        "1",
        "1",
        "3",
    ]

    scores = table(results / "images.csv", ("composite", "method"))
    assert {entry for entry, _ in scores} == set(SHARES) and len(scores) == 12
    for (entry, _), row in scores.items():
        assert float(row["share"]) == pytest.approx(SHARES[entry], rel=0.05)
    mean = sum(float(scores[entry, "composite"]["psnr"]) for entry in SHARES) / 3
    assert float(by_subset["all", "composite"]["psnr"]) == pytest.approx(
        mean, abs=1e-4
    )  # of the pictures, not of the subsets

    markdown = (results / "by_share.md").read_text(encoding="utf-8")
    line = by_share["15–100 %", "composite"]
    assert (
        f"| 15–100 % | composite | 1 | 0 | {float(line['psnr']):.2f} | {float(line['mse']):.2f} | "
        f"{float(line['fmse']):.2f} | 1.000 |" in markdown
    )
    assert images.read_image(results / "worst.png").size[0] > 3 * 256 / 1.25
    assert (results / "missing.csv").read_text().count("\n") == 1


def test_a_missing_output_is_counted_and_named(dataset, caplog):
    folder = perfect_outputs(dataset)
    (folder / "a_2_1.jpg").unlink()
    (folder / "b_x_1_7.jpg").write_bytes(b"no picture")
    code, results = evaluated(dataset, "--outputs", folder)
    assert code == 2
    assert "2 of 3 pairs" in caplog.text and "a_2_1" in caplog.text and "b_x_1_7" in caplog.text
    by_subset = table(results / "by_subset.csv")
    assert [by_subset["First", m]["missing"] for m in ("composite", "outputs")] == ["0", "1"]
    assert by_subset["Second", "outputs"]["psnr"] == ""
    assert (by_subset["all", "outputs"]["images"], by_subset["all", "outputs"]["missing"]) == ("1", "2")
    assert "| all | outputs | 1 | 2 |" in (results / "by_subset.md").read_text(encoding="utf-8")
    assert table(results / "by_share.csv")["15–100 %", "outputs"]["missing"] == "1"
    assert len(table(results / "missing.csv")) == 2


def test_a_missing_input_is_missing_for_every_method(dataset, caplog):
    (dataset / "Second" / "real_images" / "b_x.png").unlink()
    (dataset / "First" / "masks" / "a_2.png").write_bytes(b"")
    code, results = evaluated(dataset, "--outputs", untouched_outputs(dataset))
    assert code == 2
    assert "b_x.jpg" in caplog.text and "a_2.png" in caplog.text
    by_subset = table(results / "by_subset.csv")
    assert {by_subset["all", m]["missing"] for m in (*BASELINES, "outputs")} == {"2"}
    assert {by_subset["all", m]["images"] for m in (*BASELINES, "outputs")} == {"1"}


def test_the_foreground_is_put_on_the_real_background(dataset):
    """The first subset's background is off by 3 in the composites, which counts for nobody."""
    made = dataset.parent / "made"
    for triple in iharmony.pairs(dataset, "IHD_test.txt"):
        real, mask = (np.asarray(Image.open(path)) for path in (triple.real, triple.mask))
        save(made / f"{triple.composite.stem}.png", np.where(mask[..., None] > 0, real, real + 3))
    _, results = evaluated(dataset, "--outputs", made, "--native-size")
    by_subset = table(results / "by_subset.csv", ("subset", "method", "size"))
    assert float(by_subset["First", "outputs", "full"]["mse"]) == 0
    assert float(by_subset["First", "outputs", "256"]["mse"]) < 0.5  # at the scaled mask's edge alone
    assert float(by_subset["First", "composite", "full"]["mse"]) > 100


def test_results_are_rounded_to_eight_bits(dataset):
    triple = iharmony.pairs(dataset, "IHD_test.txt")[0]
    real = evaluate.prepared(images.read_image(triple.real).pixels)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., :64, :64] = 1
    pair = evaluate.Pair("a", triple, real, mask, real, 0.0625)
    assert evaluate.score(pair, (real + 0.4 / 255).clamp(0, 1), "x")[0].fmse == 0
    value, picture = evaluate.score(pair, (real + 0.6 / 255).clamp(0, 1), "x")
    assert value.fmse == pytest.approx(1)
    assert torch.equal(picture[..., 64:], real[..., 64:])
    assert value.share == 0.0625


def test_outputs_in_folders_of_subsets_and_double_names(dataset):
    made = perfect_outputs(dataset)
    (made / "Second").mkdir()
    (made / "b_x_1_7.jpg").rename(made / "Second" / "b_x_1_7.jpg")
    assert evaluated(dataset, "--outputs", made)[0] == 0
    save(made / "a_1_1.png", np.zeros((8, 8, 3), np.uint8))
    code, results = evaluated(dataset, "--outputs", made)
    assert code == 2 and "2 pictures for a_1_1" in (results / "missing.csv").read_text()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--limit", "0"], "--limit: must be a whole number from 1"),
        (["--limit", "\u0663"], "--limit: must be a whole number from 1"),
        (["--method", "paint"], "--method: invalid choice: 'paint'"),
        (["--method", "colors"], "--method: with --outputs no checkpoint runs"),
        (["--ending", "paper", "--steps", "2"], "--ending and --steps: with --outputs no checkpoint runs"),
        (["--results", ""], "--results: the name of a file or a folder is empty"),
        (["--results", "IHD_test.txt"], "IHD_test.txt"),
        (["--list", "n" * 300], "No list"),
        (["--list", "n\0"], "No list"),
    ],
)
def test_bad_options_are_one_line(dataset, monkeypatch, capsys, options, words):
    monkeypatch.chdir(dataset)
    assert main(["evaluate", ".", "--outputs", ".", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_bad_options(dataset):
    with pytest.raises(ValueError, match="No folder"):
        evaluated(dataset, "--outputs", dataset / "nowhere")
    (dataset / "twice.txt").write_text("\n".join([*SHARES, next(iter(SHARES))]))
    with pytest.raises(ValueError, match="more than once"):
        evaluated(dataset, "--outputs", dataset, "--list", "twice.txt")


def test_limit_takes_the_first_pairs(dataset):
    _, results = evaluated(dataset, "--outputs", perfect_outputs(dataset), "--limit", 1)
    assert table(results / "by_subset.csv")["all", "outputs"]["images"] == "1"


def test_at_full_size_pictures_must_be_of_the_composites_size(dataset):
    folder = perfect_outputs(dataset)
    with Image.open(folder / "a_1_1.jpg") as image:
        image.resize((160, 128)).save(folder / "a_1_1.jpg")
    code, results = evaluated(dataset, "--outputs", folder, "--native-size")
    assert code == 2
    rows = table(results / "by_subset.csv", ("subset", "method", "size"))
    assert [rows["all", "outputs", size]["missing"] for size in ("256", "full")] == ["0", "1"]
    assert "the result is 160x128, the composite 320x256" in (results / "missing.csv").read_text()


def test_pairs_with_local_light_are_a_group_of_their_own(dataset):
    entries = list(SHARES)
    lines = [{"composite": entries[0], "local": True}, {"composite": entries[2], "local": False}, {"composite": "x"}]
    manifest = dataset / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, results = evaluated(dataset, "--outputs", perfect_outputs(dataset))
    by_light = table(results / "by_light.csv")
    assert [by_light[name, "outputs"]["images"] for name in ("local light", "even light", "all")] == ["1", "1", "3"]
    scores = table(results / "images.csv", ("composite", "method"))
    assert float(by_light["local light", "outputs"]["fmse"]) == float(scores[entries[0], "outputs"]["fmse"])
    manifest.write_text(json.dumps(lines[0]) + "\n{odd\n")
    with pytest.raises(InputError, match=r"manifest\.jsonl, line 2 is not JSON"):
        evaluated(dataset, "--outputs", perfect_outputs(dataset))
    manifest.unlink()
    evaluated(dataset, "--outputs", perfect_outputs(dataset))
    assert not list(results.glob("by_light.*"))  # no other run's


def test_monge_kantorovitch_gives_the_background_s_mean_and_covariance(dataset):
    """Also how the channels go together, which Reinhard's transfer leaves: here a and b of Lab rise together outside
    the mask and against each other inside.
    """
    entry, triple = next(iter(SHARES)), iharmony.pairs(dataset, "IHD_test.txt")[0]
    inside = torch.zeros(256, 256, dtype=torch.bool)
    inside[:128, :128] = True
    light, chroma, other = np.random.default_rng(0).normal(0, 5, (3, 256, 256)).astype(np.float32)
    against = np.where(inside, -1, 1)
    lab = np.stack([55 + light + 9 * against, 5 + chroma, 5 + against * chroma + 0.8 * other], axis=-1)
    picture = torch.from_numpy(color.lab_to_rgb(lab)).permute(2, 0, 1)[None]
    pair = evaluate.Pair(entry, triple, picture, inside[None, None].float(), picture, 0.25)

    def moments(image, where):
        pixels = color.rgb_to_lab(image[0][:, where].T.numpy())
        return pixels.mean(0), np.corrcoef(pixels.T)[1, 2], pixels.std(0)

    results = dict(sources.baselines(pair))
    mean, correlation, spread = moments(picture, ~inside)
    for method, found in results.items():
        assert torch.equal(found[..., ~inside], picture[..., ~inside])
        if method != "composite":
            assert moments(found, inside)[0] == pytest.approx(mean, abs=0.3)
            assert moments(found, inside)[2] == pytest.approx(spread, rel=0.05)
    assert correlation > 0.7 and moments(results["reinhard"], inside)[1] < -0.7
    assert moments(results["monge-kantorovitch"], inside)[1] == pytest.approx(correlation, abs=0.05)


@pytest.mark.parametrize("path, size", [("masks/a_1.png", (256, 320)), ("real_images/a.png", (160, 128))])
def test_pictures_of_one_pair_must_be_of_one_size(dataset, caplog, path, size):
    """Also a mask of the same proportions: iHarmony4's own files agree to the pixel."""
    with Image.open(dataset / "First" / path) as image:
        image.resize(size).save(dataset / "First" / path)
    code, results = evaluated(dataset, "--outputs", untouched_outputs(dataset))
    assert code == 2
    number = "1" if path.startswith("masks") else "2"
    by_subset = table(results / "by_subset.csv")
    assert {by_subset["all", method]["missing"] for method in (*BASELINES, "outputs")} == {number}
    reason = next(iter(table(results / "missing.csv", ("composite", "method")).values()))["reason"]
    assert f"{path} is {size[0]}x{size[1]} but " in reason and "a_1_1.png is 320x256" in reason


def test_one_pairs_fault_is_that_pairs(dataset, caplog, monkeypatch):
    """Even a fault of the program: it is named and counted, its traceback is in the log, and the rest is scored."""
    transfer, number = sources.TRANSFERS["reinhard"], iter(range(9))

    def broken(*arguments):
        return {}["no such key"] if next(number) == 1 else transfer(*arguments)

    monkeypatch.setitem(sources.TRANSFERS, "reinhard", broken)
    code, results = evaluated(dataset, "--outputs", perfect_outputs(dataset))
    assert code == 2
    by_subset = table(results / "by_subset.csv")
    assert [by_subset["all", m]["missing"] for m in (*BASELINES, "outputs")] == ["0", "1", "0", "0"]
    assert "KeyError: 'no such key'" in (results / "missing.csv").read_text() and caplog.text.count("Traceback") == 1
