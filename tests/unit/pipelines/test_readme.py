"""The README's commands are ones that the command line takes, and its recipe is one."""

import json
import math
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bloomery.components.core.modelling import cards, plan, shapes
from bloomery.pipelines import launch
from bloomery.pipelines.cli import app

TOP = Path(__file__).parents[3]
LINES = (TOP / "README.md").read_text(encoding="utf-8").splitlines()
READMES = "\n".join((TOP / name).read_text(encoding="utf-8") for name in ("README.md", "infra/README.md"))
WRITTEN = re.findall(r"^    (?:\w+=\S+ )*(bloomery [^#\n]*)", READMES.replace("\\\n", ""), re.M)
COMMANDS = sorted({each.strip() for line in WRITTEN for each in line.split(";")})


CPU = cards.Card("CPU", math.inf, 0, 0, is_gpu=False)


def recipe_of_readme() -> str:
    begin = LINES.index("    name: mine")
    end = next(at for at in range(begin, len(LINES)) if LINES[at] and not LINES[at].startswith("  "))
    block = LINES[begin:end]
    return textwrap.dedent("\n".join(block[: block.index("")]))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_one(line):
    """Every word of it is parsed; nothing is run."""
    command, words = typer.main.get_command(app), shlex.split(line)
    context = None
    while hasattr(command, "commands"):
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        _, command, _ = command.resolve_command(context, words[1:2])
        words = words[1:]
    command.make_context(words[0], words[1:], parent=context)


def test_the_recipe_of_the_readme_is_one_and_fits_a_laptop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(recipe_of_readme(), encoding="utf-8")
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    told = CliRunner().invoke(app, ["validate", "mine.yaml"])
    assert told.exit_code == 0, told.output
    (sft,) = [stage.config for stage in launch.load("mine.yaml", [], prepare=False).stages if stage.step == "sft"]
    widths = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    widths |= {"num_key_value_heads": 3, "vocab_size": 49152, "model_type": "llama", "tie_word_embeddings": True}
    Path("config.json").write_text(json.dumps(widths), encoding="utf-8")  # of SmolLM2-135M
    need = plan.of_training(shapes.read(Path()), plan.Training.of(sft), CPU)
    assert need.peak < 16e9
