"""Which tokens are trained under published templates, of chats with a system prompt, tools and thoughts."""

import json
import lzma
import shutil
from pathlib import Path

import outside
import pytest
import trl
from toy_tokenizers import runs, tokenizer_for

from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints, templates

FOLDER = Path(trl.__file__).parent / "chat_templates"
EOS = {
    "gptoss": "<|return|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "llama": "<|eot_id|>",
    "gemma": "<eos>",
    "phi": "<|endoftext|>",
    "glm": "<|endoftext|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "diffusion": "<eos>",
}
PARTS = ("idefics3", "llava_next", "smolvlm")
"""Templates of models that see pictures and take content in parts alone: no causal language models."""
ORIGINALS = sorted(file.stem for file in FOLDER.glob("*.jinja") if not file.stem.endswith("_training"))
ALL = {"system", "thoughts", "tools"}
CALLS = {"system", "calls"}
THOUGHTLESS = {"system", "tools"}
KNOWS = {
    **dict.fromkeys(["gemma"], set()),
    **dict.fromkeys(["cohere", "cohere2", "gemma3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl"], {"system"}),
    **dict.fromkeys(["deepseek_r1_distill", "deepseekv3"], {"system", "thoughts"}),
    **dict.fromkeys(["gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "lfm2_v2", "llama3_1", "llama3_2"], THOUGHTLESS),
    **dict.fromkeys(["qwen2_5", "qwen3_5_nothink", "qwen3_instruct_2507", "qwen3_vl"], THOUGHTLESS),
}
"""What a template writes of a chat beside the turns; those that are not named, all of it."""
CHANNELS = ("diffusion_gemma", "gemma4_v5", "gptoss", "muse_glimmer")
"""Templates that write thoughts in a channel that nothing but the next one closes, of which a call has no marker."""
KEEP_THOUGHTS = ("muse_glimmer", "qwen3_8")
"""Templates that write the thoughts before an earlier answer; the others leave them out."""
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}}
TOOLS = json.dumps(
    [{"type": "function", "function": {"name": "weather", "description": "Of today.", "parameters": WEATHER}}]
)
ASSISTANT = {"thoughts": ["Thinkone", "Thinktwo", "Thinkthree"], "tools": ["weather", "Cityone"]}
OTHERS = ("Systemone", "Askone", "Asktwo", "Resultone")


def chat_of(known):
    """(messages, tools) of two questions; the first takes a call where `tools`, or `calls` alone, are `known`."""
    calls = json.dumps([{"id": "abcdef012", "name": "weather", "arguments": {"city": "Cityone"}}])

    def says(content, thought, **more):
        return {
            "role": "assistant",
            "content": content,
            **({"reasoning": thought} if "thoughts" in known else {}),
            **more,
        }

    called = [
        says("", "Thinkone", tool_calls=calls),
        {"role": "tool", "content": "Resultone", "name": "weather", "tool_call_id": "abcdef012"},
    ]
    turns = [
        *([{"role": "system", "content": "Systemone"}] if "system" in known else []),
        {"role": "user", "content": "Askone"},
        *(called if known & {"tools", "calls"} else []),
        says("Answerone", "Thinktwo"),
        {"role": "user", "content": "Asktwo"},
        says("Answertwo", "Thinkthree"),
    ]
    return turns, TOOLS if "tools" in known else ""


def words_of(known):
    """What of `chat_of` the assistant says, a list a turn: thoughts first."""
    thoughts = ASSISTANT["thoughts"] if "thoughts" in known else ["", "", ""]
    turns = [[thoughts[1], "Answerone"], [thoughts[2], "Answertwo"]]
    turns = [[thoughts[0], *ASSISTANT["tools"]], *turns] if known & {"tools", "calls"} else turns
    return [[word for word in words if word] for words in turns]


def tokenizer_of(stem, more=""):
    """A tokenizer with TRL's copy of a template, and the tokens of the template `more`."""
    text = (FOLDER / f"{stem}.jinja").read_text(encoding="utf-8")
    eos = next((token for name, token in EOS.items() if stem.startswith(name)), "<|im_end|>")
    tokenizer = tokenizer_for(text + more, eos=eos, bos="<bos>")
    tokenizer.chat_template = text
    return tokenizer


def check_trained(stem, tokenizer, known):
    """Each turn of the assistant is one run that holds what it says and ends; none holds anything else."""
    messages, tools = chat_of(known)
    rows = templates.trained_rows(tokenizer, messages, tools)
    found = [run for row in runs(tokenizer, rows) for run in row]
    ends = [tokenizer.decode([token]) for token in templates.end_tokens(tokenizer)]
    assert len(found) == len(words_of(known))
    for run, words in zip(found, words_of(known), strict=True):
        places = [run.index(word) for word in words]
        assert places == sorted(places) and all(run.count(word) == 1 for word in words if word != "weather")
        assert any(run.endswith(end) and run.count(end) == 1 for end in ends), run
        others = {word for turn in words_of(known) for word in turn} - set(words)
        assert not any(word in run for word in (*OTHERS, *others)), run

    if stem in CHANNELS:
        with pytest.raises(ModelError, match="it cannot be told where the thoughts of a turn end"):
            templates.trained_rows(tokenizer, messages, tools, train_reasoning=False)
    else:
        silent = templates.trained_rows(tokenizer, messages, tools, train_reasoning=False)
        assert [ids for ids, _ in silent] == [ids for ids, _ in rows]
        text = "".join(run for row in runs(tokenizer, silent) for run in row)
        told = {word for words in words_of(known) for word in words} - set(ASSISTANT["thoughts"])
        assert all(word in text for word in told) and "Think" not in text
    (last,) = templates.trained_rows(tokenizer, messages, tools, train_on="last_turn")
    assert runs(tokenizer, [last]) == [found[-1:]]
    return tokenizer.decode([token for token, own in zip(*last, strict=True) if not own])


REFUSALS = {
    "system": "System role not supported",
    "thoughts": "without its reasoning|does not write an assistant turn after what it asks",
    "tools": "leaves out the (calls of weather|tool 'weather')|refuses a chat: Conversation roles must alternate",
}


@pytest.mark.parametrize("stem", [stem for stem in ORIGINALS if stem not in PARTS])
def test_what_a_published_template_writes_of_the_assistant_is_trained_and_what_it_does_not_is_refused(stem):
    tokenizer, known = tokenizer_of(stem), KNOWS.get(stem, ALL)
    context = check_trained(stem, tokenizer, known)
    assert ("Thinktwo" in context) == (stem in KEEP_THOUGHTS)
    for unknown in ALL - known:
        with pytest.raises(ModelError, match=REFUSALS[unknown]):
            templates.trained_rows(tokenizer, *chat_of(known | {unknown}))


@pytest.mark.parametrize("stem", ["deepseekv3", "deepseek_r1_distill"])
def test_calls_of_tools_that_a_template_does_not_describe_are_trained(stem):
    check_trained(stem, tokenizer_of(stem), CALLS)


@pytest.mark.parametrize("stem", [stem for stem in ORIGINALS if stem not in PARTS])
def test_what_stands_before_an_answer_is_what_the_model_writes_there_itself(stem):
    """An empty thought, or a channel."""
    tokenizer = tokenizer_of(stem)
    found = [run for row in runs(tokenizer, templates.trained_rows(tokenizer, *chat_of(set()))) for run in row]
    empty = ("<think>\n\n</think>\n\n", "\n</think>\n\n", "</think>", "\n<think></think>\n")
    for run, content in zip(found, ("Answerone", "Answertwo"), strict=True):
        assert run.partition(content)[0] in ("", *empty, "<|channel|>final<|message|>", " to=user<|message|>")


@pytest.mark.parametrize("stem", PARTS)
def test_templates_of_parts_alone_are_refused(stem):
    with pytest.raises(ModelError):
        templates.trained_rows(tokenizer_of(stem), *chat_of(set()))


@pytest.mark.parametrize(
    ("name", "known"), [("qwen3", ALL), ("gptoss", ALL), ("deepseek_v3", CALLS), ("smollm2", {"system"})]
)
def test_and_so_it_is_with_the_tokenizers_that_they_are_published_with(name, known, tmp_path):
    for file in outside.folder("BLOOMERY_DATA", "tokenizers", name).iterdir():
        if file.suffix == ".xz":
            (tmp_path / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, tmp_path / file.name)
    check_trained(name, checkpoints.load_tokenizer(tmp_path), known)
