"""A tiny data set and what tiny trainings make of it, once for all tests."""

import pytest
import training_runs as runs

from diffharmony_models.__main__ import main


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def vae(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("vae")
    assert main(runs.autoencoder(dataset, output=output)) == 0
    return output / "vae.safetensors"


@pytest.fixture(scope="session")
def stage1(dataset, vae, tmp_path_factory):
    output = tmp_path_factory.mktemp("stage1")
    assert main(runs.harmonizer(dataset, vae, output=output)) == 0
    return output / "harmonizer.safetensors"
