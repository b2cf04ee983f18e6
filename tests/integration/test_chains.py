"""Chains that are not the quickstart's, each through the command line on a tiny real model."""

import json
import shutil
from pathlib import Path

import colours
import pytest
import yaml

TRAINING = {"batch_size": 8, "max_length": 64}
REUSED_NEVER = {"preflight", "promotion"}
LEARNING = {"learning_rate": 1e-2, "epochs": 30, **TRAINING}


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    return colours.write_recipe(tmp_path, tiny_model)


def write(project: Path, stages: list, splits: tuple[str, ...], **changes: object) -> None:
    """Make the recipe's chain `stages`, with the questions of `splits` alone and nothing quantised."""
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    questions = recipe["tasks"]["colour"]["splits"]
    recipe["tasks"]["colour"]["splits"] = {name: questions[name] for name in splits}
    recipe |= {"stages": stages, "quantisation": [], **changes}
    (project / "recipe.yaml").write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value != ""}))


def questions(project: Path, split: str) -> list[dict]:
    rows = [json.loads(line) for line in (project / "q.jsonl").read_text().split("\n")]
    return [row for row in rows if row["split"] == split]


def test_fine_tuning_alone_on_a_file_of_conversations(project, object_store):
    lines = [
        {"messages": [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]}
        for row in questions(project, "train")
    ]
    (project / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"messages": []}\n')
    write(project, [{"sft": LEARNING}], ("test",), chats=[{"name": "own", "path": "chats.jsonl"}])
    surroundings = {**object_store.environment(), "BLOOMERY_STORE": object_store.uri}
    summary = colours.run(project, "w", **surroundings)
    assert summary["status"] == "promoted", summary["reason"]
    assert summary["chain"] == [
        *("preflight", "evaluation_base", "chat_curation", "sft", "evaluation_sft"),
        *("evaluation_champion", "promotion"),
    ]
    assert summary["stages"]["chat_curation"]["chat_curation/rejects"] == 1
    assert summary["stages"]["sft"]["sft/chats"] == summary["stages"]["chat_curation"]["chat_curation/chats"]
    assert summary["stages"]["evaluation_sft"]["evaluation/colour.test.accuracy"] == 1.0
    # Another machine, with a registry of its own, has nothing to do again.
    object_store.fail("503", "GET .*/model.safetensors")
    second = colours.run(project, "elsewhere", **surroundings)
    assert second["status"] == "promoted" and set(second["cached_steps"]) == set(summary["chain"]) - REUSED_NEVER
    assert not list((project / "elsewhere").glob("store/*"))
    ran = [sorted(Path(told["run"]).glob("pipeline/*/*/model/manifest.json")) for told in (summary, second)]
    first, again = ({file.read_bytes() for file in manifests} for manifests in ran)
    assert first == again and len(first) >= 1


def test_preference_optimisation_alone_on_a_file_of_pairs(project):
    lines = [{"prompt": row["q"], "chosen": row["a"], "rejected": "blue"} for row in questions(project, "train")]
    lines.append({"prompt": "colour of nothing?", "chosen": "red", "rejected": "red"})
    (project / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write(
        project,
        [{"dpo": {"learning_rate": 1e-3, "epochs": 2, **TRAINING}}],
        ("test",),
        preferences=[{"name": "own", "path": "pairs.jsonl"}],
    )
    summary = colours.run(project, "w")
    assert summary["status"] in ("promoted", "rejected"), summary["reason"]
    assert summary["stages"]["chat_curation"]["chat_curation/preferences"] == len(lines) - 1
    dpo = summary["stages"]["dpo"]
    assert dpo["dpo/margin_after"] > dpo["dpo/margin_before"]


def test_a_reward_model_rewards_what_verifiers_cannot(project):
    """Fine-tuned on answers of one to four letters, the model learns from a reward model of pairs to give one."""
    asked = questions(project, "train")
    talk = [{"prompt": row["q"], "completion": "r" * (1 + at % 4)} for at, row in enumerate(asked)]
    pairs = [{"prompt": row["q"], "chosen": "r", "rejected": "rrrr"} for row in asked]
    for name, lines in (("chats", talk), ("pairs", pairs)):
        (project / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    stages = [
        {"sft": {**LEARNING, "epochs": 10}},
        {"reward_model": {**LEARNING, "epochs": 10}},
        {"grpo": {"learning_rate": 5e-3, "epochs": 8, "batch_size": 32, "max_length": 64, "rewards": {"verifier": 0}}},
    ]
    given = {
        "chats": [{"name": "talk", "path": "chats.jsonl"}],
        "preferences": [{"name": "short", "path": "pairs.jsonl"}],
    }
    write(project, stages, ("unlabelled", "test"), **given)
    summary = colours.run(project, "w")
    assert summary["status"] in ("promoted", "rejected"), summary["reason"]
    assert "evaluation_grpo" in summary["chain"] and "evaluation_reward_model" not in summary["chain"]
    grpo = summary["stages"]["grpo"]
    assert grpo["grpo/prompts"] == len(questions(project, "unlabelled"))
    assert grpo["grpo/reward_last"] > grpo["grpo/reward_first"] + 0.5
    assert grpo["grpo/answer_tokens_last"] < grpo["grpo/answer_tokens_first"]


def test_two_rounds_of_sampling_and_preferences_twice(project):
    again = {"learning_rate": 1e-3, "epochs": 2, "adapter": {"rank": 4}, **TRAINING}
    sampling = {"num_samples": 4, "temperature": 1.2}
    preferring = {"learning_rate": 1e-4, "epochs": 1, "batch_size": 2, "max_length": 64}
    stages = [
        {"sft": {**LEARNING, "epochs": 40}},
        {"rejection_sampling": sampling},
        {"sft": {"as": "sft_2", **again}},
        {"rejection_sampling": {"as": "sampling_2", **sampling, "seed": 5}},
        {"sft": {"as": "sft_3", **again}},
        {"dpo": preferring},
        {"rejection_sampling": {"as": "sampling_3", **sampling, "temperature": 2.0}},
        {"dpo": {"as": "dpo_2", **preferring}},
    ]
    write(project, stages, ("train", "unlabelled", "validation", "test"))
    summary = colours.run(project, "w")
    assert summary["status"] == "promoted", summary["reason"]
    names = [next(iter(stage.values())).get("as", next(iter(stage))) for stage in stages]
    assert [name for name in summary["chain"] if name in names] == names
    assert set(summary["stages"]) == set(summary["chain"])
    first = summary["stages"]["rejection_sampling"]
    assert summary["stages"]["sft_2"]["sft/chats"] == (
        summary["stages"]["sft"]["sft/chats"] + first["rejection_sampling/accepted_chats"]
    )


def test_continued_pre_training_alone_is_judged_by_perplexity(project):
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    texts = {"role": "domain", "templates": [{"answer": "{text}"}], "verifier": {"kind": "perplexity"}}
    held_out = [{"text": f"The {thing} in the shop is painted red every May."} for thing in ("gate", "spoon", "ladder")]
    (project / "held_out.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    tasks = {"pages": {**texts, "splits": {"test": {"path": "held_out.jsonl"}}}}
    stages = [recipe["stages"][0], "dedup", {"cpt": {"learning_rate": 1e-2, "epochs": 4, **TRAINING}}]
    recipe |= {"stages": stages, "quantisation": [], "tasks": tasks}
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = colours.run(project, "w")
    assert summary["status"] == "promoted", summary["reason"]
    verdict = json.loads((colours.outputs(summary)["promotion", "verdict"].path / "verdict.json").read_text())
    (leg,) = [leg for leg in verdict["legs"] if leg["kind"] == "task"]
    assert leg["name"] == "pages.test perplexity against base" and leg["value"] < leg["baseline"]


MERGED = {
    "mean": {"method": "linear", "models": [{"stage": "red"}, {"stage": "shy"}]},
    "arc": {"method": "slerp", "t": 0.3, "models": [{"stage": "red"}, {"model": "elsewhere"}]},
    "sum": {"from": "start", "method": "ties", "density": 0.5, "models": [{"stage": "red"}, {"stage": "shy"}]},
    "deep": {"from": "red", "method": "depth_up_scaling", "removed_layers": 1},
}


def test_two_fine_tunings_of_one_base_are_merged_and_a_deeper_model_is_healed(project):
    """Siblings by `from`, a model from outside, a base that is not the newest, and continued training of the result."""
    curation, dedup = yaml.safe_load((project / "recipe.yaml").read_text())["stages"][:2]
    stages = [
        *(curation, dedup),
        {"sft": {"as": "red", **LEARNING}},
        {"sft": {"as": "shy", "from": "start", **LEARNING, "epochs": 10, "seed": 5}},
        *({"merging": {"as": name, **settings}} for name, settings in MERGED.items()),
        {"cpt": {"learning_rate": 1e-3, "epochs": 1, **TRAINING}},
        {"sft": {"as": "last", **LEARNING}},
    ]
    shutil.copytree(project / "base", project / "elsewhere")
    write(project, stages, ("train", "test"))
    summary = colours.run(project, "w")
    assert summary["status"] in ("promoted", "rejected"), summary["reason"]  # four questions show little
    for name in ("mean", "arc", "sum"):
        assert summary["stages"][name]["merging/models"] == 2 and summary["stages"][name]["merging/relative_change"] > 0
    assert summary["stages"]["deep"]["merging/layers"] == 2
    assert summary["stages"]["evaluation_last"]["evaluation/colour.test.accuracy"] >= 0.75
    # A model elsewhere changes: its own merging and what reads of that are done again, and nothing before.
    config = project / "elsewhere" / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    again = colours.run(project, "w")
    assert {"red", "shy", "mean"} <= set(again["cached_steps"]) and "arc" not in again["cached_steps"]
    assert "last" in again["cached_steps"]
