"""`bloomery tune` through the command line on a tiny real model."""

import json

import colours
import pytest

pytest.importorskip("optuna", reason="pip install 'bloomery[tune]'")


@pytest.fixture
def project(tmp_path, tiny_model):
    return colours.write_recipe(tmp_path, tiny_model)


def tune(project, *arguments):
    result = colours.bloomery(project, "tune", "recipe.yaml", "--workdir", "w", "--json", *arguments)
    assert "Traceback" not in result.stderr, result.stderr
    return result, json.loads(result.stdout.splitlines()[-1]) if result.stdout else None


def test_a_grid_of_learning_rates(project):
    over = ("--over", "sft.learning_rate=1e-6,1e-2", "--sampler", "grid", "--set", "sft.num_validations=2")
    result, told = tune(project, *over)
    assert result.returncode == 0, result.stderr
    by_rate = {trial["settings"]["sft.learning_rate"]: trial for trial in told["trials"]}
    assert {trial["state"] for trial in by_rate.values()} == {"complete"}
    assert by_rate[1e-2]["value"] < by_rate[1e-6]["value"] and told["best"] == by_rate[1e-2]
    page = (project / told["page"]).read_text()
    assert "sft/validation_loss" in page and "<svg" in page
    # What both have in common ran once, nothing was evaluated, and nothing promoted.
    runs = [json.loads(line) for file in project.glob("w/runs/*/journal.jsonl") for line in file.open()]
    finished = [(event["stage"], event["cached"]) for event in runs if event["event"] == "finished"]
    assert sorted(cached for stage, cached in finished if stage == "data_curation") == [False, True]
    assert not any(stage.startswith(("evaluation", "promotion", "dpo")) for stage, _ in finished)
    # The same command has nothing left to do.
    again, same = tune(project, *over)
    assert again.returncode == 0 and same["trials"] == told["trials"]
    assert len(list(project.glob("w/runs/*"))) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--over", "sft.learning_rat=1e-6,1e-2"), "did you mean 'learning_rate'"),
        (("--over", "sft.learning_rate=-1..1e-2"), "greater than 0"),
        (("--over", "seed=1,2"), "so --measure has to: stage/metric"),
        (("--over", "sft.epochs=1,2", "--measure", "sftt/loss"), "expected stage/metric, the stage one of data"),
        (("--over", "sft.epochs=1..2", "--sampler", "grid"), "sft.epochs is a range; a grid needs lists"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_the_first_trial(arguments, told, project):
    result, _ = tune(project, *arguments)
    assert result.returncode == 2 and told in result.stderr
    assert not (project / "w" / "runs").exists()
