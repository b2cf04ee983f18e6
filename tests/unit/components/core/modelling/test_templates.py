"""Which tokens of a chat are trained, under templates of every kind that is published."""

import json

import pytest
from toy_tokenizers import runs, tokenizer_for

from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import rendering, templates

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
SYSTEM_IN_LAST = (  # as Mistral 7B v0.3 has it: the system prompt stands in the last user's turn
    "{{ bos_token }}{% set s = messages[0] if messages[0].role == 'system' else none %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and s %}{{ s.content + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def turn(opens: str, closes: str, prompt: str, before: str = "") -> str:
    """A template whose turns are `opens` (with ROLE), the content and `closes`, and that asks with `prompt`."""
    return (
        f"{before}{{% for m in messages %}}{{{{ {opens!r}.replace('ROLE', m.role) + m.content + {closes!r} }}}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {prompt!r} }}}}{{% endif %}}"
    )


def says(content, **more):
    return {"role": "assistant", "content": content, **more}


def asks(content):
    return {"role": "user", "content": content}


SYSTEM = {"role": "system", "content": "Be brief"}
TWO = [asks("hi"), says("hello"), asks("bye"), says("ciao")]
KINDS = {
    # template, tokenizer, what is trained in TWO (rows of runs), the tokens that end an answer
    "chatml": (CHATML, {"eos": "<|im_end|>"}, [["hello<|im_end|>", "ciao<|im_end|>"]], ["<|im_end|>"]),
    "chatml that never opens the turn": (
        CHATML.partition("{% if add")[0],
        {"eos": "<|im_end|>"},
        [["hello<|im_end|>", "ciao<|im_end|>"]],
        ["<|im_end|>"],
    ),
    "llama 3's first, which opens the next turn unasked": (
        turn("<|start|>ROLE<|stop|>\n\n", "<|eot_id|>", "", "{{ bos_token }}")
        + "{{ '<|start|>assistant<|stop|>\n\n' }}",
        {"eos": "<|eot_id|>", "bos": "<|begin|>", "writes_bos": True},
        [["hello<|eot_id|>", "ciao<|eot_id|>"]],
        ["<|eot_id|>"],
    ),
    "eos that ends no turn": (
        turn("<|start|>ROLE<|stop|>\n\n", "<|eot_id|>", "<|start|>assistant<|stop|>\n\n", "{{ bos_token }}"),
        {"eos": "<|end_of_text|>", "bos": "<|begin|>", "writes_bos": True},
        [["hello<|eot_id|>", "ciao<|eot_id|>"]],
        ["<|eot_id|>", "<|end_of_text|>"],
    ),
    "gemma": (
        ALTERNATE
        + turn("<start_of_turn>ROLE\n", "<end_of_turn>\n", "<start_of_turn>model\n", "{{ bos_token }}").replace(
            "m.role)", "'model' if m.role == 'assistant' else m.role)"
        ),
        {"eos": "<eos>", "bos": "<bos>", "writes_bos": True},
        [["hello<end_of_turn>", "ciao<end_of_turn>"]],
        ["<end_of_turn>", "<eos>"],
    ),
    "mistral": (
        SYSTEM_IN_LAST,
        {"eos": "</s>", "bos": "<s>", "writes_bos": True},
        [[" hello</s>", " ciao</s>"]],
        ["</s>"],
    ),
    "zephyr, whose template has no bos": (
        turn("<|ROLE|>\n", "</s>\n", "<|assistant|>\n") + "{#<|user|><|assistant|><|system|>#}",
        {"eos": "</s>", "bos": "<s>", "writes_bos": True},
        [["hello</s>", "ciao</s>"]],
        ["</s>"],
    ),
    "phi, which writes eos after the last turn": (
        turn("<|ROLE|>\n", "<|end|>\n", "<|assistant|>\n").replace(
            "{% endif %}", "{% else %}{{ eos_token }}{% endif %}"
        )
        + "{#<|user|><|assistant|>#}",
        {"eos": "<|endoftext|>"},
        [["hello<|end|>", "ciao<|end|>"]],
        ["<|end|>", "<|endoftext|>"],
    ),
    "glm, whose turns end with the next": (
        turn("<|ROLE|>\n", "", "<|assistant|>\n") + "{#<|user|><|assistant|><|observation|>#}",
        {"eos": "<|endoftext|>"},
        [["hello<|user|>", "ciao<|user|>"]],
        ["<|user|>", "<|endoftext|>"],
    ),
    "no end at all": (
        turn("### ROLE:\n", "\n\n", "### assistant:\n"),
        {"eos": "<eos>"},
        [["hello<eos>"], ["ciao<eos>"]],
        ["<eos>"],
    ),
    "another end for the last turn": (
        "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant<|message|>' }}{% endif %}",
        {"eos": "<|return|>"},
        [["hello<|return|>"], ["ciao<|return|>"]],
        ["<|return|>"],
    ),
    "thoughts that are asked for and left out": (
        turn("<|ROLE|>", "<|end|>", "<|assistant|><think>\n") + "{#<|user|><|assistant|>#}",
        {"eos": "<|end|>"},
        [["\n</think>\n\nhello<|end|>"], ["\n</think>\n\nciao<|end|>"]],
        ["<|end|>"],
    ),
    "marks that leave the end out": (
        CHATML.replace("m['content']", "m['content']") + "{% generation %}{% endgeneration %}",
        {"eos": "<|im_end|>"},
        [["hello<|im_end|>", "ciao<|im_end|>"]],
        ["<|im_end|>"],
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    template, settings, trained, ends = KINDS[request.param]
    return tokenizer_for(template, **settings), trained, ends


def test_the_assistants_words_and_their_end_are_trained_and_nothing_else(kind):
    tokenizer, trained, ends = kind
    assert runs(tokenizer, templates.trained_rows(tokenizer, TWO)) == trained
    assert tokenizer.convert_ids_to_tokens(templates.end_tokens(tokenizer)) == ends
    (last,) = templates.trained_rows(tokenizer, TWO, train_on="last_turn")
    assert (
        runs(tokenizer, [last])
        == [trained[-1][-1:]]
        == runs(tokenizer, [templates.trained_tokens(tokenizer, TWO, train_on="last_turn")])
    )


def test_a_turn_is_trained_after_what_serving_asks_with(kind):
    tokenizer, _, _ = kind
    asked = [templates.prompt_tokens(tokenizer, TWO[:1]), templates.prompt_tokens(tokenizer, TWO[:3])]
    starts = [
        ids[:place]
        for ids, trained in templates.trained_rows(tokenizer, TWO)
        for place in range(1, len(ids))
        if trained[place] and not trained[place - 1]
    ]
    assert starts == asked
    assert all(ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None) for ids in asked)


def test_answers_come_without_what_stands_before_them(kind):
    tokenizer, trained, _ = kind
    answer = tokenizer(trained[-1][-1], add_special_tokens=False)["input_ids"]
    assert templates.answer_text(tokenizer, answer) == "ciao"


def test_a_system_prompt_in_the_last_users_turn_is_trained_where_it_is_served():
    tokenizer = tokenizer_for(SYSTEM_IN_LAST, eos="</s>", bos="<s>")
    rows = templates.trained_rows(tokenizer, [SYSTEM, *TWO])
    assert [tokenizer.decode(ids) for ids, _ in rows] == [
        "<s>[INST] Be brief\n\nhi[/INST] hello</s>",
        "<s>[INST] hi[/INST] hello</s>[INST] Be brief\n\nbye[/INST] ciao</s>",
    ]
    assert runs(tokenizer, rows) == [[" hello</s>"], [" ciao</s>"]]


def test_earlier_thoughts_that_a_template_drops_are_trained_in_rows_of_their_own():
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if loop.last and m.role == 'assistant' %}"
        "{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = tokenizer_for(template, eos="<|im_end|>")
    chat = [asks("hi"), says("hello", reasoning="I greet"), asks("bye"), says("ciao", reasoning="I part")]
    rows = templates.trained_rows(tokenizer, chat)
    assert runs(tokenizer, rows) == [["<think>I greet</think>hello<|im_end|>"], ["<think>I part</think>ciao<|im_end|>"]]
    assert "I greet" not in tokenizer.decode(rows[1][0])
    ids = [token for token, own in zip(*rows[1], strict=True) if own]
    assert templates.answer_text(tokenizer, ids) == "ciao"
    assert templates.answer_text(tokenizer, ids[:4], is_open=True) == ""


def test_the_date_is_the_same_on_every_day():
    tokenizer = tokenizer_for("{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML, eos="<|im_end|>")
    assert tokenizer.decode(templates.prompt_tokens(tokenizer, TWO[:1])).startswith("26 Jul 2024\n<|im_start|>user")


def sentencepiece(template, scheme):
    """A tokenizer in the manner of Llama 2: a space is `▁`, put before a text as well, and BOS is written."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghilnorstuy",
        "▁h",
        "▁c",
        "he",
    ]
    merges = [("▁", "h"), ("▁", "c"), ("h", "e")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_words_that_begin_with_their_space_are_trained_as_they_are_generated(scheme):
    tokenizer = sentencepiece(SYSTEM_IN_LAST, scheme)
    ((ids, trained),) = templates.trained_rows(tokenizer, TWO)
    own = tokenizer.convert_ids_to_tokens([token for token, mark in zip(ids, trained, strict=True) if mark])
    assert own == ["▁h", "e", "l", "l", "o", "</s>", "▁c", "i", "a", "o", "</s>"]
    assert ids[: trained.index(True)] == templates.prompt_tokens(tokenizer, TWO[:1]) and ids.count(1) == 1


CALL = json.dumps([{"id": "abcdef012", "name": "weather", "arguments": {"city": "Seoul"}}])
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}])
GEMMA = KINDS["gemma"]
REFUSED = {
    "a system prompt that is dropped": (
        CHATML.replace(
            "{{ '<|im_start|>' +", "{% if m.role == 'system' %}{% continue %}{% endif %}{{ '<|im_start|>' +"
        ),
        [SYSTEM, *TWO],
        "",
        "leaves out the system's turn 'Be brief'",
    ),
    "a system prompt that is forbidden": (GEMMA[0], [SYSTEM, *TWO], "", "Conversation roles must alternate"),
    "tools that are never mentioned": (CHATML, TWO, TOOLS, "leaves out the tool 'weather'"),
    "a call that is never written": (CHATML, [asks("Rain?"), says("", tool_calls=CALL)], "", "leaves out the calls"),
    "a call in roles that the template refuses": (
        GEMMA[0],
        [asks("Rain?"), says("", tool_calls=CALL), asks("?"), asks("?"), says("a")],
        "",
        "^the chat template refuses a chat: Conversation roles must alternate; the chat",
    ),
    "a call beside tools that lack what the template wants": (
        "{% for t in tools %}{{ t.function.name + t.function.owner }}{% endfor %}" + CHATML,
        [asks("Rain?"), says("", tool_calls=CALL)],
        TOOLS,
        "^the chat template refuses a chat: 'dict object' has no attribute 'owner'; the chat",
    ),
    "thoughts that are dropped": (
        CHATML,
        [asks("hi"), says("hello", reasoning="I greet")],
        "",
        "without its reasoning",
    ),
    "an end inside of a turn": (CHATML, [asks("hi"), says("a<|im_end|>b")], "", "says what ends a turn"),
    "nobody answers": (CHATML, [asks("hi")], "", "without an assistant turn"),
    "words that are changed": (CHATML.replace("m['content']", "(m['content'] | upper)"), TWO, "", "leaves out|content"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_proven_is_refused(name):
    template, chat, tools, told = REFUSED[name]
    tokenizer = tokenizer_for(template, eos="<|im_end|>", bos="<bos>")
    with pytest.raises(ModelError, match=told) as caught:
        templates.trained_rows(tokenizer, chat, tools)
    assert rendering.PROBE not in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_has_one_bos_where_the_tokenizer_writes_it_and_one_end():
    wrote = tokenizer_for(CHATML, eos="<|im_end|>", bos="<s>", writes_bos=True)
    plain = tokenizer_for(CHATML, eos="<|im_end|>", bos="<s>")
    bos, end = wrote.bos_token_id, wrote.eos_token_id
    word = plain("ab", add_special_tokens=False)["input_ids"]
    assert templates.text_tokens(wrote, "ab", end=True) == [bos, *word, end]
    assert templates.text_tokens(wrote, "<s>ab") == [bos, *word]
    assert templates.text_tokens(plain, "ab") == word


NAMED = [{"type": "function", "function": {"name": "weather"}}]
STRICT = "{% for t in tools or [] %}{{ t.function.description + '/' + (t.function.parameters | tojson) }};{% endfor %}"
LAX = "{% for t in tools or [] %}{{ t | tojson }};{% endfor %}"


def test_tools_are_rendered_as_they_are_and_completed_where_the_template_refuses_them():
    """OpenAI's API asks for the name of a function alone."""
    said = [asks("Rain?")]
    strict, lax = (tokenizer_for(before + LAX + CHATML, eos="<|im_end|>") for before in (STRICT, ""))
    text = strict.decode(templates.prompt_tokens(strict, said, json.dumps(NAMED)))
    assert text.startswith(
        '/{"type": "object", "properties": {}};{"type": "function", "function": {"name": "weather", '
    )
    text = lax.decode(templates.prompt_tokens(lax, said, json.dumps(NAMED)))
    assert text.startswith('{"type": "function", "function": {"name": "weather"}};<|im_start|>user')
    empty = {"description": None, "parameters": {"type": "object"}, "strict": True}
    text = strict.decode(
        templates.prompt_tokens(strict, said, json.dumps([{"function": {"name": "weather", **empty}}]))
    )
    assert text.startswith('/{"type": "object"};{"function": {"name": "weather", ') and '"strict": true' in text


THINKING = (  # as Qwen3 writes a last turn
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "said", "trained"),
    [
        (THINKING, says("hello", reasoning="I greet"), "\n\nhello<|im_end|>"),
        (THINKING, says("hello"), "\n\nhello<|im_end|>"),
        (CHATML, says("<think>I say </think> first</think>\n\nhello"), "\n\nhello<|im_end|>"),
        (CHATML, says("hello"), "hello<|im_end|>"),
        (
            turn("<|im_start|>ROLE\n", "<|im_end|>\n", "<|im_start|>assistant\n<think>\n"),
            says("<think>\nI greet\n</think>\n\nhello"),
            "\n\nhello<|im_end|>",
        ),
    ],
)
def test_thoughts_are_read_and_have_no_loss_where_asked(template, said, trained):
    tokenizer = tokenizer_for(template, eos="<|im_end|>")
    whole = templates.trained_rows(tokenizer, [asks("hi"), said])
    answer = templates.trained_rows(tokenizer, [asks("hi"), said], train_reasoning=False)
    assert [ids for ids, _ in answer] == [ids for ids, _ in whole]
    assert runs(tokenizer, answer) == [[trained]]


@pytest.mark.parametrize(
    ("template", "made", "turn"),
    [
        (CHATML, "<think>I greet</think>hello", says("<think>I greet</think>hello")),
        (THINKING, "<think>\nI greet\n</think>\n\nhello", says("hello", reasoning="I greet")),
    ],
)
def test_what_was_thought_is_no_answer_and_is_trained_as_it_was_said(template, made, turn):
    tokenizer = tokenizer_for(template, eos="<|im_end|>")
    ids = tokenizer(made, add_special_tokens=False)["input_ids"]
    assert templates.answer_text(tokenizer, ids) == "hello"
    begun = [templates.answer_text(tokenizer, ids[:count], is_open=True) for count in range(len(ids) + 1)]
    assert all("hello".startswith(text) for text in begun) and begun[-1] == "hello"
    said = templates.said(tokenizer, ids)
    assert {name: value for name, value in said.items() if value} == turn
    assert runs(tokenizer, templates.trained_rows(tokenizer, [asks("hi"), turn])) == [[f"{made}<|im_end|>"]]


def test_thoughts_that_do_not_end_where_the_answer_begins_are_refused():
    after = "+ m['content'] + ('/' + m.reasoning_content if m.reasoning_content else '') +"
    template = CHATML.replace("+ m['content'] +", after)
    tokenizer = tokenizer_for(template, eos="<|im_end|>")
    chat = [asks("hi"), says("hello", reasoning="I greet")]
    assert runs(tokenizer, templates.trained_rows(tokenizer, chat)) == [["hello/I greet<|im_end|>"]]
    with pytest.raises(ModelError, match="it cannot be told where the thoughts of a turn end"):
        templates.trained_rows(tokenizer, chat, train_reasoning=False)


@pytest.mark.parametrize("said", ["<think>I never", "<think>I greet</think>", "<think>I greet</think>\n\n  "])
def test_a_thought_without_an_answer_has_no_loss(said):
    tokenizer = tokenizer_for(CHATML, eos="<|im_end|>")
    ((_, trained),) = templates.trained_rows(tokenizer, [asks("hi"), says(said)], train_reasoning=False)
    assert not any(trained)
