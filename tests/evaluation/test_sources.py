"""What of a checkpoint is scored."""

import math

import pytest
import torch
from evaluated_pairs import BASELINES, SHARES, evaluated, table
from PIL import Image

from diffharmony_models import checkpoint, pipeline
from diffharmony_models.endings import ENDINGS
from diffharmony_models.errors import InputError
from diffharmony_models.evaluation import report
from diffharmony_models.evaluation import scoring as evaluate
from diffharmony_models.files import iharmony, images
from diffharmony_models.settings import Settings


def test_a_checkpoint_scores_as_the_pictures_that_it_makes(dataset, weights):
    """Every method by both endings, at both sizes, is what the engine's own call makes of each picture."""
    path = weights()
    options = ["--limit", 2, "--steps", 2, "--native-size"]
    code, results = evaluated(dataset, "--checkpoint", path, *options)
    assert code == 0
    calls = {"colors": Settings(method="colors")} | {
        f"{method}+{ending}": Settings(method=method, ending=ending, steps=2)
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
                own = call.for_picture(triple.composite.stem)
                refined = engine(pair.composite, pair.mask, own).refined
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
    chosen = methods(weights(), "--method", "both", "colors", "--ending", "paper")
    assert chosen == ["both+paper", "colors"]  # in the order given


def test_colors_alone_need_no_other_part(dataset, weights):
    path = weights(unet=None, vae=None, refiner=None, null_text=None)
    code, results = evaluated(dataset, "--checkpoint", path)
    assert code == 0
    scores = table(results / "images.csv", ("composite", "method"))
    assert {method for _, method in scores} == {*BASELINES, "colors"}
    for options, words in (
        (["--method", "both"], "has no UNet"),
        (["--ending", "paper"], "no refiner|no use"),
        (["--steps", 2], "--steps: the method colors has no use for it"),
    ):
        with pytest.raises(InputError, match=words):
            evaluated(dataset, "--checkpoint", path, *options)


@pytest.mark.parametrize("harmony_vae", [False, True])
def test_all_endings_share_one_diffusion(dataset, parts, weights, harmony_vae, monkeypatch):
    path = weights(harmony_vae=parts["harmony_vae"] if harmony_vae else None)
    sizes, build = [], checkpoint.build_unet

    def counted(part):
        unet = build(part)
        unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return unet

    monkeypatch.setattr(checkpoint, "build_unet", counted)
    options = ["--method", "diffusion", "--limit", 1, "--steps", 3, "--resolution", 128, "--ending", *ENDINGS]
    evaluated(dataset, "--checkpoint", path, *options)
    assert len(sizes) == 1 + 3  # one of one step tries the checkpoint


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
    code, results = evaluated(dataset, "--checkpoint", weights(), "--steps", 1, "--method", "diffusion", "colors")
    assert code == 2 and "b_x_1_7.png (diffusion+paper): " in caplog.text
    by_subset = table(results / "by_subset.csv")
    first = by_subset["First", "diffusion+paper"]
    assert (first["images"], first["missing"]) == ("2", "0")
    assert by_subset["Second", "diffusion+paper"]["missing"] == "1"
    assert by_subset["all", "composite"]["missing"] == by_subset["all", "colors"]["missing"] == "0"
    assert ("more memory than there is" in caplog.text) == isinstance(error, RuntimeError)
    assert ("Traceback" in caplog.text) != isinstance(error, RuntimeError)
