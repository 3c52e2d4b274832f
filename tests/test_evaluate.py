import argparse
import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diffharmony_models import checkpoint, color, pipeline
from diffharmony_models.__main__ import main
from diffharmony_models.cli import harmonize
from diffharmony_models.errors import InputError
from diffharmony_models.evaluation import report
from diffharmony_models.evaluation import scoring as evaluate
from diffharmony_models.files import iharmony, images
from diffharmony_models.networks.color_regressor import ColorRegressor
from diffharmony_models.networks.harmony_vae import HarmonyVAE
from diffharmony_models.networks.refiner import Refiner

SHARES = {
    "First/composite_images/a_1_1.png": 0.04,
    "First/composite_images/a_2_1.png": 0.25,
    "Second/composite_images/b_x_1_7.png": 0.0625,
}


BASELINES = ["composite", "reinhard", "monge-kantorovitch"]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def dataset(tmp_path):
    """Three pairs of 320x256 pictures in two subsets: a darker foreground, and in the first subset a background that
    differs by 3.
    """
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    for entry, share in SHARES.items():
        subset, _, name = entry.split("/")
        image, mask_number, _ = name.rsplit("_", 2)
        side = math.sqrt(share)
        mask = np.zeros((256, 320), np.uint8)
        mask[10 : 10 + round(256 * side), 20 : 20 + round(320 * side)] = 255
        smooth = Image.fromarray(generator.integers(0, 250, (9, 9, 3), dtype=np.uint8)).resize(
            (320, 256), Image.Resampling.BICUBIC
        )
        real = np.minimum(np.asarray(smooth), 250)
        composite = np.where(mask[..., None] > 0, real // 2, real + 3 * (subset == "First")).astype(np.uint8)
        save(root / entry, composite)
        save(root / subset / "masks" / f"{image}_{mask_number}.png", mask)
        if not (root / subset / "real_images" / f"{image}.png").exists():
            save(root / subset / "real_images" / f"{image}.png", real)
        else:  # two masks of one picture: their composites start from the same real one
            real = np.asarray(Image.open(root / subset / "real_images" / f"{image}.png"))
            save(root / entry, np.where(mask[..., None] > 0, real // 2, real + 3).astype(np.uint8))
    (root / "IHD_test.txt").write_text("\n".join(SHARES) + "\n")
    return root


def evaluated(root, *options):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    results = root.parent / "results"
    return evaluate.run(parser.parse_args([str(root), "--results", str(results), *map(str, options)])), results


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


def test_worst_cases_are_the_ten_worst_in_order(tmp_path):
    log = report.Report(["x"], ranked_by="x")
    for fmse in [5, 1, 30, 7, 2, 9, 11, 3, 4, 8, 6, 10]:
        log.offer_sheet_row(fmse, lambda fmse=fmse: [("x", torch.full((1, 3, 256, 256), fmse / 255))])
    log.write(tmp_path, "A test.")
    sheet = Image.open(tmp_path / "worst.png")
    column = np.asarray(sheet)[:, 255, 0]  # right of all text
    shown = [int(value) for value, before in zip(column[1:], column[:-1]) if value != before and value in range(1, 31)]
    assert shown == [30, 11, 10, 9, 8, 7, 6, 5, 4, 3]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--limit", "0"], "--limit: must be a whole number from 1"),
        (["--limit", "\u0663"], "--limit: must be a whole number from 1"),
        (["--methods", "paint"], "--methods: invalid choice: 'paint'"),
        (["--methods", "colors"], "--methods: with --outputs no checkpoint runs"),
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


@pytest.fixture(scope="module")
def parts():
    """A whole DiffHarmony with random weights at the smallest widths, working at 64."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=9, out_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=8, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1, latent_channels=4, norm_num_groups=4, scaling_factor=0.18215,
    )  # fmt: skip
    refiner = Refiner(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    colors = ColorRegressor(size=64)
    torch.nn.init.normal_(colors.curve.bias, std=0.05)  # at first it is 0, no change
    modules = {
        "unet": unet,
        "vae": vae,
        "refiner": refiner,
        "color_regressor": colors,
        "harmony_vae": HarmonyVAE.from_vae(vae),
    }
    return {name: checkpoint.part_from(module) for name, module in modules.items()}


@pytest.fixture
def weights(parts, tmp_path):
    def write(**changes):
        path = tmp_path / "tiny.safetensors"
        held = {**parts, "harmony_vae": None, "null_text": torch.ones(2, 8), "resolution": 64, **changes}
        checkpoint.write(checkpoint.Checkpoint("tiny", **held), path)
        return path

    return write


def test_a_checkpoint_scores_as_the_pictures_that_it_makes(dataset, weights):
    """Every method by both endings, at both sizes, is what the engine's own call makes of each picture."""
    path = weights()
    options = ["--limit", 2, "--steps", 2, "--dtype", "float32", "--native-size"]
    code, results = evaluated(dataset, "--checkpoint", path, *options)
    assert code == 0
    calls = {"colors": {"method": "colors"}} | {
        f"{method}+{ending}": {"method": method, "ending": ending}
        for method in ("both", "diffusion")
        for ending in ("transfer", "paper")
    }
    rows = table(results / "images.csv", ("composite", "method", "size"))
    assert list(dict.fromkeys(method for _, method, _ in rows)) == [*BASELINES, *calls]
    engine = pipeline.DiffHarmony.from_checkpoint(checkpoint.read(path), dtype=torch.float32)
    for triple, entry in zip(iharmony.pairs(dataset, "IHD_test.txt")[:2], SHARES):
        for pair in evaluate.load(entry, triple, native_size=True):
            assert pair.composite.shape[-2:] == ((256, 256) if pair.size == "256" else (256, 320))
            for method, call in calls.items():
                seeds = [harmonize.picture_seed(0, triple.composite.stem)]
                refined = engine(pair.composite, pair.mask, steps=2, seeds=seeds, **call).refined
                alone = evaluate.score(pair, refined, method)[0]
                for measure in report.MEASURES:
                    assert float(rows[entry, method, pair.size][measure]) == pytest.approx(
                        getattr(alone, measure), rel=1e-3
                    )
        assert len({rows[entry, method, size]["psnr"] for method in calls for size in ("256", "full")}) == 10
    text = (results / "by_subset.md").read_text(encoding="utf-8")
    assert "checkpoint tiny, resolution 64, 2 steps" in text
    assert text.index("## At 256×256") < text.index("## At full size")


def test_the_methods_are_those_that_the_checkpoint_has(dataset, weights):
    def methods(path, *options):
        _, results = evaluated(dataset, "--checkpoint", path, "--limit", 1, "--steps", 1, *options)
        return [method for group, method in table(results / "by_subset.csv") if group == "all"][len(BASELINES) :]

    assert methods(weights(color_regressor=None, refiner=None)) == ["diffusion+transfer"]
    chosen = methods(weights(), "--methods", "both", "colors", "--ending", "paper")
    assert chosen == ["both+paper", "colors"]  # in the order given


def test_colors_alone_need_no_other_part(dataset, weights):
    path = weights(unet=None, vae=None, refiner=None, null_text=None)
    code, results = evaluated(dataset, "--checkpoint", path)
    assert code == 0
    scores = table(results / "images.csv", ("composite", "method"))
    assert {method for _, method in scores} == {*BASELINES, "colors"}
    for options, words in (
        (["--methods", "both"], "has no UNet"),
        (["--ending", "paper"], "no refiner|no use"),
        (["--steps", 2], "--steps: the method colors has no use for it"),
    ):
        with pytest.raises(InputError, match=words):
            evaluated(dataset, "--checkpoint", path, *options)


@pytest.mark.parametrize(("harmony_vae", "runs"), [(False, 1), (True, 2)])
def test_both_endings_share_one_diffusion(dataset, parts, weights, harmony_vae, runs, monkeypatch):
    """Two only where the endings decode by different VAEs, and so start from different latents."""
    path = weights(harmony_vae=parts["harmony_vae"] if harmony_vae else None)
    sizes, build = [], checkpoint.build_unet

    def counted(part):
        unet = build(part)
        unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return unet

    monkeypatch.setattr(checkpoint, "build_unet", counted)
    options = ["--methods", "diffusion", "--limit", 1, "--steps", 3, "--resolution", 128]
    evaluated(dataset, "--checkpoint", path, *options)
    assert len(sizes) == (1 + 3) * runs  # one of one step tries the checkpoint


def test_at_full_size_pictures_must_be_of_the_composites_size(dataset):
    folder = perfect_outputs(dataset)
    with Image.open(folder / "a_1_1.jpg") as image:
        image.resize((160, 128)).save(folder / "a_1_1.jpg")
    code, results = evaluated(dataset, "--outputs", folder, "--native-size")
    assert code == 2
    rows = table(results / "by_subset.csv", ("subset", "method", "size"))
    assert [rows["all", "outputs", size]["missing"] for size in ("256", "full")] == ["0", "1"]
    assert "the result is 160x128, the composite 320x256" in (results / "missing.csv").read_text()


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

    results = dict(evaluate._baselines(pair))
    mean, correlation, spread = moments(picture, ~inside)
    for method, found in results.items():
        assert torch.equal(found[..., ~inside], picture[..., ~inside])
        if method != "composite":
            assert moments(found, inside)[0] == pytest.approx(mean, abs=0.3)
            assert moments(found, inside)[2] == pytest.approx(spread, rel=0.05)
    assert correlation > 0.7 and moments(results["reinhard"], inside)[1] < -0.7
    assert moments(results["monge-kantorovitch"], inside)[1] == pytest.approx(correlation, abs=0.05)


def test_a_checkpoint_that_cannot_harmonize_is_told_at_once(dataset, parts, weights):
    with pytest.raises(InputError, match=r"no refiner.*--ending transfer"):
        evaluated(dataset, "--checkpoint", weights(refiner=None), "--ending", "paper")
    state = {name: torch.full_like(tensor, math.nan) for name, tensor in parts["unet"].state.items()}
    with pytest.raises(InputError, match="NaN"):
        evaluated(
            dataset, "--checkpoint", weights(unet=checkpoint.Part(parts["unet"].config, state)), "--ending", "paper"
        )
    assert not (dataset.parent / "results" / "by_subset.csv").exists()


@pytest.mark.parametrize("error", [ValueError("odd"), IndexError("out of range"), RuntimeError("out of memory")])
def test_a_picture_that_fails_fails_alone(dataset, weights, caplog, monkeypatch, error):
    """Whatever the engine raises on one picture, the others are scored, and its own methods that do not fail."""
    with Image.open(dataset / "Second" / "composite_images" / "b_x_1_7.png") as image:
        bad = evaluate.prepared(images.read_image(image.filename).pixels)
    work = pipeline.DiffHarmony.harmonize_latents

    def broken(self, composite, *arguments, **options):
        if any(torch.equal(one, bad[0]) for one in composite):
            raise error
        return work(self, composite, *arguments, **options)

    monkeypatch.setattr(pipeline.DiffHarmony, "harmonize_latents", broken)
    code, results = evaluated(dataset, "--checkpoint", weights(), "--steps", 1, "--methods", "diffusion", "colors")
    assert code == 2 and "b_x_1_7.png (diffusion+paper): " in caplog.text
    by_subset = table(results / "by_subset.csv")
    first = by_subset["First", "diffusion+paper"]
    assert (first["images"], first["missing"]) == ("2", "0")
    assert by_subset["Second", "diffusion+paper"]["missing"] == "1"
    assert by_subset["all", "composite"]["missing"] == by_subset["all", "colors"]["missing"] == "0"
    assert ("more memory than there is" in caplog.text) == isinstance(error, RuntimeError)
    assert ("Traceback" in caplog.text) != isinstance(error, RuntimeError)


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
    transfer, number = evaluate.TRANSFERS["reinhard"], iter(range(9))

    def broken(*arguments):
        return {}["no such key"] if next(number) == 1 else transfer(*arguments)

    monkeypatch.setitem(evaluate.TRANSFERS, "reinhard", broken)
    code, results = evaluated(dataset, "--outputs", perfect_outputs(dataset))
    assert code == 2
    by_subset = table(results / "by_subset.csv")
    assert [by_subset["all", m]["missing"] for m in (*BASELINES, "outputs")] == ["0", "1", "0", "0"]
    assert "KeyError: 'no such key'" in (results / "missing.csv").read_text() and caplog.text.count("Traceback") == 1
