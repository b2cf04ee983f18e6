"""Which tokens are trained under published templates, of chats with a system prompt, tools and thoughts,
and what TRL trains of the same chats."""

import json
import lzma
import re
import shutil
from pathlib import Path

import outside
import pytest
import trl
from toy_tokenizers import runs, tokenizer_for

from bloomery.components.core.data import chat_forms
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints, rendering, templates

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


@pytest.mark.parametrize(
    "stem", [stem for stem in ORIGINALS if "thoughts" in KNOWS.get(stem, ALL) and stem not in PARTS]
)
def test_thoughts_in_a_content_are_trained_where_the_template_has_them(stem):
    """As many chats are written; a template of another form would train them as words of the answer."""
    tokenizer, (messages, _) = tokenizer_of(stem), chat_of({"thoughts"})
    written = [
        {"role": turn["role"], "content": f"<think>\n{turn['reasoning']}\n</think>\n\n{turn['content']}"}
        if "reasoning" in turn
        else turn
        for turn in messages
    ]
    within, apart = (templates.trained_rows(tokenizer, each) for each in (written, messages))
    for one, other in zip(runs(tokenizer, within), runs(tokenizer, apart), strict=True):
        assert ["".join(text.split()) for text in one] == ["".join(text.split()) for text in other]
    if stem in (*CHANNELS, "qwen3_8"):
        assert within == apart


@pytest.mark.parametrize("stem", ["deepseekv3", "deepseek_r1_distill"])
def test_calls_of_tools_that_a_template_does_not_describe_are_trained(stem):
    check_trained(stem, tokenizer_of(stem), CALLS)


@pytest.mark.parametrize("stem", ["gptoss", "qwen3"])
def test_of_several_calls_of_a_turn_the_model_is_asked_after_all_or_none(stem):
    """gpt-oss writes the first alone, and each result with its name, which looks like two calls."""
    (question, turn, result, *_), tools = chat_of(THOUGHTLESS - {"system"})
    (first,) = json.loads(turn["tool_calls"])
    second = {**first, "id": "abcdef013", "arguments": {"city": "Citytwo"}}
    calls = {**turn, "tool_calls": json.dumps([first, second])}
    asked = [question, calls, result, {**result, "tool_call_id": "abcdef013", "content": "Resulttwo"}]
    tokenizer = tokenizer_of(stem)
    if stem == "gptoss":
        with pytest.raises(ModelError, match="writes 1 of the 2 calls of weather"):
            templates.prompt_tokens(tokenizer, asked, tools)
    else:
        text = tokenizer.decode(templates.prompt_tokens(tokenizer, asked, tools))
        assert all(word in text for word in ("Cityone", "Citytwo", "Resultone", "Resulttwo"))


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


def published(name, folder):
    """A published tokenizer, unpacked to `folder`."""
    for file in outside.folder("BLOOMERY_DATA", "tokenizers", name).iterdir():
        if file.suffix == ".xz":
            (folder / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, folder / file.name)
    return checkpoints.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "known"), [("qwen3", ALL), ("gptoss", ALL), ("deepseek_v3", CALLS), ("smollm2", {"system"})]
)
def test_and_so_it_is_with_the_tokenizers_that_they_are_published_with(name, known, tmp_path):
    check_trained(name, published(name, tmp_path), known)


@pytest.mark.parametrize("name", ["qwen3", "gptoss"])
def test_tools_without_a_description_are_trained(name, tmp_path):
    tokenizer = published(name, tmp_path)
    for row in (outside.folder("BLOOMERY_CASES") / "tools.jsonl").read_text(encoding="utf-8").splitlines():
        chat = chat_forms.read_chat(json.loads(row))
        call, answer = (
            run
            for each in runs(tokenizer, templates.trained_rows(tokenizer, chat.messages, chat.tools))
            for run in each
        )
        city = json.loads(chat.messages[1]["tool_calls"])[0]["arguments"]["city"]
        assert "get_weather" in call and city in call and chat.messages[3]["content"] in answer


MARKED = {
    stem: next(name for name in (f"{stem}_training", stem) if (FOLDER / f"{name}.jinja").is_file())
    for stem in ORIGINALS
    if (FOLDER / f"{stem}_training.jinja").is_file() or stem.startswith("lfm2_2_5")
}
"""TRL's templates with marks for the loss, by the original; LFM2.5's has its own."""
AROUND = {
    **dict.fromkeys(["cohere", "llama3", "glm4moe"], ("", "")),
    "cohere2": ("", "<\\|END_OF_TURN_TOKEN\\|>"),
    **dict.fromkeys(["phi3", "phi3_5"], ("", "\n(<\\|endoftext\\|>)?")),
    "qwen2_5": ("\n", "\n"),
    **dict.fromkeys(["gptoss", "muse_glimmer"], ("<\\|start\\|>assistant", "")),
    "qwen3_5_nothink": ("<think>\n\n</think>\n\n", "\n"),
    **dict.fromkeys(["qwen3_5_think", "qwen3_6", "qwen3_8"], ("<think>\n", "\n")),
    **{stem: ("<think>\n?", "\n") for stem in ORIGINALS if stem.startswith("nemotron")},
}
"""What TRL trains beside a turn as we do, as patterns: before it what the model is asked with, after it what follows
the end and is never generated. Those that are not named: nothing, and a line end."""
ENDS = {"gptoss": ("<|return|>", "<|end|>"), "diffusion_gemma": ("<|tool_response>", "")}
"""Ends that we train where TRL has another: of an answer that is not the last, which the template rewrites, and of a
call, of which TRL trains none."""
FORGET = ("diffusion_gemma", "glm4moe", "gptoss", "lfm2_2_5", "nemotron")
"""Templates that leave out the thoughts before an earlier answer, in TRL's version too, so that it trains none of them;
we train each turn after what it is produced after, in a row of its own."""
DEEPSEEK = ("deepseek_r1_distill", "deepseekv3")
"""Templates that know no `reasoning_content`: we put it where the model is asked for it, TRL trains answers without."""


def both(stem, known):
    """(tokenizer, our rows of `chat_of`, TRL's) by the original template and by the one with marks."""
    marked = (FOLDER / f"{MARKED[stem]}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of(stem, marked)
    messages, tools = chat_of(known)
    rows = templates.trained_rows(tokenizer, messages, tools)
    given = rendering.shaped(tokenizer, messages, tools)
    for message in given:
        message["thinking"] = message.get("reasoning_content")  # as LFM2.5 calls it
    wanted = {"return_assistant_tokens_mask": True, "return_dict": True}
    told = tokenizer.apply_chat_template(
        given, tools=json.loads(tools) if tools else None, chat_template=marked, **wanted
    )
    return tokenizer, rows, [(told["input_ids"], told["assistant_masks"])]


def texts(tokenizer, rows, known):
    """What is trained, a text a turn, in the order of the turns."""
    found = [run for row in runs(tokenizer, rows) for run in row]
    return sorted(found, key=lambda run: next(at for at, (*_, word) in enumerate(words_of(known)) if word in run))


@pytest.mark.parametrize("stem", [stem for stem in MARKED if stem not in (*PARTS, *DEEPSEEK)])
def test_what_trl_marks_is_trained_and_nothing_else(stem):
    """Turns, system prompt and calls of all templates, and the thoughts of those that forget none in TRL's version."""
    known = KNOWS.get(stem, ALL)
    known = known - {"thoughts"} if stem.startswith(FORGET) else known
    tokenizer, rows, marked = both(stem, known)
    ours, theirs = (texts(tokenizer, each, known) for each in (rows, marked))
    assert len(theirs) == len(ours) == len(words_of(known))
    before, after = AROUND.get(stem, ("", "\n"))
    own_end, other_end = ENDS.get(stem, ("", ""))
    for our, their in zip(ours, theirs, strict=True):
        same = f"{before}{re.escape(our)}{after}"
        other = f"{before}{re.escape(our.removesuffix(own_end) + other_end)}"
        assert re.fullmatch(same, their) or (own_end and re.fullmatch(other, their)), (our, their)
    if len(rows) == 1:  # the same tokens in the same places
        ((own_ids, own_marks),), ((ids, marks),) = rows, marked
        beyond = [token for token, own, mark in zip(own_ids, own_marks, marks, strict=False) if own and not mark]
        assert ids[: len(own_ids)] == own_ids and tokenizer.decode(beyond) == (own_end if beyond else "")


@pytest.mark.parametrize("stem", [stem for stem in MARKED if stem.startswith(FORGET)])
def test_thoughts_before_an_earlier_answer_are_trained_where_trl_trains_none(stem):
    tokenizer, rows, marked = both(stem, ALL)
    ours, theirs = ("".join(texts(tokenizer, each, ALL)) for each in (rows, marked))
    assert [ours.count(word) for word in ASSISTANT["thoughts"]] == [1, 1, 1]
    assert [theirs.count(word) for word in ASSISTANT["thoughts"]] == [0, 0, 1]


@pytest.mark.parametrize("stem", DEEPSEEK)
def test_thoughts_of_deepseek_are_trained_after_what_it_is_asked_with_where_trl_leaves_them_out(stem):
    known = KNOWS[stem]
    tokenizer, rows, marked = both(stem, known)
    end = "<｜end▁of▁sentence｜>"
    assert texts(tokenizer, rows, known) == [
        f"Thinktwo\n</think>\n\nAnswerone{end}",
        f"Thinkthree\n</think>\n\nAnswertwo{end}",
    ]
    assert texts(tokenizer, marked, known) == [f"<｜Assistant｜>Answerone{end}", f"<｜Assistant｜>Answertwo{end}"]
