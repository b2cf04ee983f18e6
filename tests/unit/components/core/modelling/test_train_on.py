"""Which turns of a chat have a loss, and that tools and thoughts reach the model's template."""

from __future__ import annotations

from bloomery.components.core.data.chats import chat, message
from bloomery.components.core.modelling import templates


def test_the_last_turn_alone_has_a_loss_where_asked(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    turns = [*chat("a", "bc"), *chat("d", "ef")]
    learnt = {}
    for train_on in ("all_turns", "last_turn"):
        ids, own = templates.trained_tokens(tokenizer, turns, train_on=train_on)
        learnt[train_on] = tokenizer.decode([token for token, mark in zip(ids, own, strict=True) if mark])
    assert learnt == {"all_turns": "bc<|eos|>ef<|eos|>", "last_turn": "ef<|eos|>"}


def test_tools_and_thoughts_reach_the_template(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
        "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content }}/{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}"
        "{{ '<|eos|>' if m.role == 'assistant' else ';' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    call = '[{"id": "c", "name": "weather", "arguments": {"city": "Seoul"}}]'
    turns = [*chat("how?"), message("assistant", "", reasoning="ask", tool_calls=call), message("tool", "21")]
    tools = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'
    shown = tokenizer.decode(templates.prompt_tokens(tokenizer, turns, tools))
    assert shown == "[weather]user:/how?;assistant:ask/weather(Seoul)<|eos|>tool:/21;assistant:"
