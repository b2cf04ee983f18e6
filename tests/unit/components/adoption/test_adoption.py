"""Another model is adopted into a chain, as it is."""

import shutil

import pytest

from bloomery.components.adoption.config import AdoptionConfig
from bloomery.components.adoption.step import run
from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.named_models import NamedModel


def test_a_model_of_a_stage_or_from_outside_is_the_same_model(tiny_model, tmp_path):
    digest = artifact.read_manifest(tiny_model, "model/1").digest
    by_stage, by_folder = AdoptionConfig(stage="other"), AdoptionConfig(model="org/other", revision="v2")
    told = run(by_stage, named=tiny_model, model=tmp_path / "a")
    assert artifact.read_manifest(tmp_path / "a", "model/1").digest == digest
    assert told == {"adoption/parameters": float(checkpoints.num_parameters(tiny_model))}
    folder = NamedModel(model="org/other", revision="v2").folder
    shutil.copytree(tiny_model, tmp_path / "outside" / folder)
    run(by_folder, outside=tmp_path / "outside", model=tmp_path / "b")
    assert artifact.read_manifest(tmp_path / "b", "model/1").digest == digest
    # What it was adopted from is as it was.
    assert artifact.read_manifest(tiny_model, "model/1").digest == digest
    with pytest.raises(ConfigError, match="org/other: named in the settings, and not among the inputs"):
        run(by_folder, named=tiny_model, model=tmp_path / "c")


def test_what_cannot_be_trained_or_asked_is_refused(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template"):
        run(AdoptionConfig(stage="bare"), named=tmp_path / "bare", model=tmp_path / "m")
