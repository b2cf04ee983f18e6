"""What is told of a model before it is trained, and what it is given."""

import json
import shutil

import colours
import pytest
import yaml
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import checkpoints, inspection, templates
from bloomery.pipelines.cli import app


@pytest.fixture
def bare(tiny_model, tmp_path):
    """A base model without a chat template and a pad token."""
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_the_first_chat_is_shown_with_what_would_be_trained(tiny_model):
    chats = [([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "")]
    facts = inspection.look(tiny_model, chats=chats, max_length=5)
    assert facts["refused"] == [] and facts["template"] == "own"
    assert facts["sample"] == [[("<|user|>hi<|assistant|>", False), ("yes<|eos|>", True)]]
    assert facts["lengths"] == {"chats": 1, "rows": 1, "longest": [8], "max_length": 5, "over": 1.0,
                                "end_inside": 0, "first_end_inside": ""}  # fmt: skip
    assert facts["vocabulary"] == {"tokenizer": 260, "embeddings": 260}
    text = inspection.describe(facts)
    assert "<|user|>hi<|assistant|>⟦yes<|eos|>⟧" in text and "100.0% over max_length 5" in text


def test_chats_that_say_what_ends_a_turn_are_left_out_and_refuse_a_model_only_if_all_do(tiny_model):
    asked, good, bad = ({"role": role, "content": text} for role, text in
                        (("user", "hi"), ("assistant", "yes"), ("assistant", "y<|eos|>s")))  # fmt: skip
    facts = inspection.look(tiny_model, chats=[([asked, bad], ""), ([asked, good], "")])
    assert facts["refused"] == [] and facts["lengths"]["chats"] == 2 and facts["lengths"]["rows"] == 1
    assert facts["sample"] == [[("<|user|>hi<|assistant|>", False), ("yes<|eos|>", True)]]
    assert "left out      1 chats, such as chat 1 of 2: an assistant turn says what ends a turn" in inspection.describe(
        facts
    )
    pairs = [{"messages": [asked], "tools": "", "chosen": [good], "rejected": [bad]}]
    assert inspection.look(tiny_model, pairs=pairs)["pair_lengths"]["longest"] == []
    (reason,) = inspection.look(tiny_model, chats=[([asked, bad], "")])["refused"]
    assert reason.startswith("chat 1 of 1: an assistant turn says what ends a turn ('<|eos|>')")


def test_pairs_are_measured_as_they_are_trained(tiny_model):
    good, bad = ({"role": "assistant", "content": text} for text in "bc")
    pair = {"messages": [{"role": "user", "content": "a"}], "tools": "", "chosen": [good], "rejected": [bad]}
    facts = inspection.look(tiny_model, pairs=[pair, {**pair, "rejected": [good]}], pair_max_length=4)
    # `<|user|>a<|assistant|>b<|eos|>`; a pair of one answer twice is none.
    assert facts["pair_lengths"] == {"pairs": 2, "longest": [5], "max_length": 4, "over": 0.5}
    one = {**pair, "rejected": []}
    for kinds, row, lengths in ((["pair"], one, []), (["label"], one, [5]), (["score"], {**one, "score": 1.0}, [5])):
        assert inspection.look(tiny_model, pairs=[row], pair_kinds=kinds)["pair_lengths"]["longest"] == lengths
    assert "no chats were given" in inspection.describe(facts) and "a chat of ours" in inspection.describe(facts)
    assert "pairs         2 preferences, longest [5], 50.0% over max_length 4" in inspection.describe(facts)


def test_a_template_that_refuses_a_question_is_told_with_its_set(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "strict")
    template = folder / "chat_template.jinja"
    no_system = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system prompts') }}{%- endif -%}"
    template.write_text(no_system + template.read_text())
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    sets = [inspection.EvaluationSet("t.test", [asked], [""], 8)]
    (reason,) = inspection.look(folder, evaluation_sets=sets)["refused"]
    assert reason.startswith("tasks.t.test: ") and "no system prompts" in reason


def test_what_a_base_model_lacks_is_written_into_the_folder_and_not_into_the_users(bare, tmp_path):
    from bloomery.components.core import artifact

    assert "has no chat template" in inspection.look(bare)["refused"][0]
    facts = inspection.look(bare, chat_template="chatml")
    assert facts["refused"] == [] and facts["template"] == "supplied"
    assert any("chat template chatml" in what for what in facts["supplied"])
    artifact.link_tree(bare, tmp_path / "given")
    inspection.supply(tmp_path / "given", "chatml", facts["end_ids"])
    assert not (bare / "chat_template.jinja").exists()
    model, tokenizer = checkpoints.load(tmp_path / "given")
    checkpoints.check_template(tokenizer, bare)
    # Its vocabulary has no <|im_end|>, so EOS ends a turn; and without a pad token, pads too.
    assert (
        templates.end_tokens(tokenizer, model.generation_config) == [tokenizer.eos_token_id] == [tokenizer.pad_token_id]
    )


def test_a_template_file_that_is_not_there(bare):
    with pytest.raises(ConfigError, match=r"chat_template: found nowhere\.jinja"):
        inspection.look(bare, chat_template="nowhere.jinja")


def test_the_ends_of_a_turn_are_added_to_a_published_list(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7], "temperature": 0.5}')
    facts = inspection.look(folder)
    inspection.supply(folder, "", facts["end_ids"])
    stored = json.loads((folder / "generation_config.json").read_text())
    assert stored == {"eos_token_id": [1, 7], "temperature": 0.5}


def test_check_tells_and_ends_with_4_if_the_model_is_refused(tiny_model, bare):
    told = CliRunner().invoke(app, ["check", str(tiny_model)])
    assert told.exit_code == 0 and "⟦Seoul<|eos|>⟧" in told.stdout
    refused = CliRunner().invoke(app, ["check", str(bare), "--json"])
    assert refused.exit_code == 4 and json.loads(refused.stdout)["refused"]
    assert CliRunner().invoke(app, ["check", str(bare), "--chat-template", "chatml"]).exit_code == 0


def test_a_file_without_a_chat_is_told_and_no_example_shown_for_it(tiny_model, tmp_path):
    recipe = yaml.safe_load(colours.write_recipe(tmp_path, tiny_model).joinpath("recipe.yaml").read_text())
    (tmp_path / "own.csv").write_text("instruction;output\nhi;hello\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "chats": [{"name": "own", "path": "own.csv"}]}))
    error = CliRunner().invoke(app, ["check", str(tiny_model), "--recipe", str(tmp_path / "recipe.yaml")]).exception
    assert isinstance(error, DataError) and "unknown_form" in str(error) and 'set `delimiter: ";"`' in str(error)


@pytest.mark.parametrize("named", ["x", 999_999, [3, True]])
def test_an_end_that_is_no_token_is_refused(named, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": named}))
    told = inspection.look(tmp_path / "model")["refused"]
    assert len(told) == 1 and f"eos_token_id is {named!r}, expected ids of the tokenizer's" in told[0]


def test_the_rows_of_a_recipe_are_what_is_looked_at(tiny_model, tmp_path):
    colours.write_recipe(tmp_path, tiny_model)
    asked = ["check", str(tiny_model), "--recipe", str(tmp_path / "recipe.yaml"), "--json"]
    told = json.loads(CliRunner().invoke(app, asked, catch_exceptions=False).stdout)
    assert told["refused"] == [] and told["lengths"]["chats"] == 10 and told["lengths"]["max_length"] == 64
    assert [text for row in told["sample"] for text, trained in row if trained] == ["red<|eos|>"]
