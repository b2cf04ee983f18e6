"""Soft prompts: the embeddings of new tokens, which alone are trained, and which the chat template writes at the start
of every chat. What comes out is an ordinary checkpoint with a tokenizer of its own, so that whatever serves it reads
the very tokens that were trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import templates

NAME = "<|soft_{}|>"
COMMON = 5_000
"""Tokens that a soft prompt's beginning is drawn from: the first of the vocabulary, which are the most common of one
that was made by merges (arXiv 2104.08691, section 3.2, draws from as many)."""
TIED_ALONE = ("gemma",)
"""What the model_type begins with of architectures whose head llama.cpp and vLLM take from the embeddings, whatever the
checkpoint says."""


def added(network: Any, tokenizer: Any, count: int, *, text: str = "", encoded: bool = False, seed: int = 0) -> Any:
    """Give `network` embeddings of `count` new tokens, which alone are trained from now on, and return the tokenizer
    that has these tokens and writes them at the start of every chat.

    They begin as those of `text`, repeated or cut, or as those of tokens drawn by `seed`; with `encoded` they come out
    of a bidirectional LSTM and two layers, which are trained as well (P-tuning, arXiv 2103.10385, section 3.2). The
    head gives a new token the likelihood of the token that it finds least likely, so that it is never chosen; for that
    the head of tied embeddings is taken apart from them.
    Raises: ConfigError if the architecture knows tied embeddings alone; ModelError if the tokens cannot be written at
            the start, or the embeddings are no mere table.
    """
    import torch

    own, tokens = _with_tokens(tokenizer, count)
    begun_as = _begin(tokenizer, count, text, seed)
    unlikely = _least_likely(network, tokenizer)
    _take_head_apart(network)
    network.requires_grad_(False)
    if tokens[-1] >= network.get_input_embeddings().weight.shape[0]:
        network.resize_token_embeddings(tokens[-1] + 1, mean_resizing=False)
    embeddings, head = network.get_input_embeddings(), network.get_output_embeddings()
    for weight in (head.weight, getattr(head, "bias", None)):
        if weight is not None:
            weight.data[tokens[0] :] = weight.data[unlikely].clone()
    settings = network.generation_config
    settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), *tokens})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start_KD = embeddings.weight.data[begun_as].float().clone()
        network.soft_prompt = _made(torch.randn_like(start_KD) if encoded else start_KD, encoded).to(network.device)
    network.soft_prompt.tokens = tokens
    network.soft_prompt.hook = embeddings.register_forward_hook(_replacing(network.soft_prompt, tokens))
    _prove_a_table(network)
    network.requires_grad_(False)
    network.soft_prompt.requires_grad_(True)
    return own


def tokens_of(tokenizer: Any) -> dict[str, int]:
    """The tokens of all soft prompts that `tokenizer` has, with their ids."""
    pattern = NAME.replace("|", r"\|").format(r"\d+")
    return {token: index for token, index in tokenizer.get_vocab().items() if re.fullmatch(pattern, token)}


def folded(network: Any) -> Any:
    """`network` with the trained embeddings in its table, and nothing beside it."""
    soft = network.soft_prompt
    _write(network)
    soft.hook.remove()
    del network.soft_prompt
    return network


def _with_tokens(tokenizer: Any, count: int) -> tuple[Any, list[int]]:
    """(a copy of the tokenizer that writes `count` new tokens at the start of a chat, their ids)."""
    from tokenizers import AddedToken

    templates.turns(tokenizer)
    own = copy.deepcopy(tokenizer)
    known = len(tokens_of(tokenizer))
    names = [NAME.format(index) for index in range(known + 1, known + count + 1)]
    own.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    tokens = own.convert_tokens_to_ids(names)
    written = tokenizer.chat_template
    own.chat_template = (
        {name: _begun(one, "".join(names)) for name, one in written.items()}
        if isinstance(written, dict)
        else _begun(written, "".join(names))
    )
    asked = chat("What is this?")
    before, after = (templates.prompt_tokens(one, asked) for one in (tokenizer, own))
    # BOS is no beginning where it opens turns, as SmolLM2's does.
    begin = int(after[:1] == before[:1] == [tokenizer.bos_token_id])
    rest, whole = (own.decode(ids).strip() for ids in (after[begin + count :], before[begin:]))
    if after[begin : begin + count] != tokens or rest != whole:
        raise ModelError(
            "a soft prompt cannot be written at the start of a chat by this template. It makes of one: "
            f"{own.decode(after)[:600]!r}; train an adapter of another kind"
        )
    return own, tokens


def _begun(template: str, names: str) -> str:
    """A chat template that writes `names` first, or after BOS where it writes that."""
    if "bos_token" not in template:
        return names + template
    # A line break after a block, and the last one of a template, are no part of the text.
    whole = f"{{% set soft_chat %}}\n{template.removesuffix(chr(10))}{{% endset %}}"
    return (
        f"{whole}{{% if bos_token and soft_chat.startswith(bos_token) %}}{{{{ bos_token }}}}{names}"
        f"{{{{ soft_chat[bos_token|length:] }}}}{{% else %}}{names}{{{{ soft_chat }}}}{{% endif %}}"
    )


def _begin(tokenizer: Any, count: int, text: str, seed: int) -> list[int]:
    """The tokens whose embeddings the new ones begin as."""
    import random

    if text:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [ids[at % len(ids)] for at in range(count)]
    common = [token for token in range(min(COMMON, len(tokenizer))) if token not in tokenizer.added_tokens_decoder]
    return random.Random(seed).choices(common, k=count)


def _least_likely(network: Any, tokenizer: Any) -> int:
    """The token whose highest probability in a chat is the lowest: one that training has pushed away everywhere, as it
    does with what hardly occurs (arXiv 2405.05417, section 2)."""
    import torch

    ids = templates.trained_tokens(tokenizer, chat("What is this?", "An answer."))[0]
    with torch.inference_mode():
        logits_LV = network(input_ids=torch.tensor([ids], device=network.device)).logits[0].float()
    highest_V = logits_LV.log_softmax(-1).amax(0)
    return int(highest_V[: len(tokenizer)].argmin())


def _take_head_apart(network: Any) -> None:
    """Give the head a weight of its own, where it shares that of the embeddings: else a new token would be as likely an
    answer as the token whose embedding it begins as."""
    import torch

    head, embeddings = network.get_output_embeddings(), network.get_input_embeddings()
    if head.weight is not embeddings.weight:
        return
    kind = network.config.model_type
    if kind.startswith(TIED_ALONE):
        raise ConfigError(
            f"adapter.kind: a soft prompt needs a head apart from the embeddings, which engines do not read of {kind}; "
            "take lora"
        )
    head.weight = torch.nn.Parameter(embeddings.weight.detach().clone())
    for settings in (network.config, network.config.get_text_config()):
        settings.tie_word_embeddings = False
    network.all_tied_weights_keys = network.get_expanded_tied_weights_keys(all_submodels=False)


def _made(start_KD: Any, encoded: bool) -> Any:
    """The module whose weights are trained; called it gives the embeddings, float32 [K, D]."""
    from torch import nn

    class SoftPrompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(start_KD)
            if encoded:
                width, half = start_KD.shape[1], start_KD.shape[1] // 2
                self.lstm = nn.LSTM(width, half, num_layers=2, bidirectional=True, batch_first=True)
                self.layers = nn.Sequential(nn.Linear(2 * half, width), nn.ReLU(), nn.Linear(width, width))

        def forward(self) -> Any:
            return self.layers(self.lstm(self.rows[None])[0])[0] if encoded else self.rows

    return SoftPrompt()


def _replacing(soft: Any, tokens: Sequence[int]) -> Any:
    """A hook of the embeddings that puts those of `soft` where its tokens stand."""
    import torch

    def replace(module: Any, given: tuple[Any, ...], output_BLD: Any) -> Any:
        place_BL = given[0] - tokens[0]
        is_soft_BL1 = ((place_BL >= 0) & (place_BL < len(tokens)))[..., None]
        rows_KD = soft().to(output_BLD.dtype)
        return torch.where(is_soft_BL1, rows_KD[place_BL.clamp(0, len(tokens) - 1)], output_BLD)

    return replace


def _write(network: Any) -> None:
    """Put the embeddings as they are now into the network's own table."""
    import torch

    with torch.no_grad():
        soft, table = network.soft_prompt, network.get_input_embeddings().weight
        table.data[soft.tokens] = soft().to(table.dtype)


def _prove_a_table(network: Any) -> None:
    """Raise ModelError unless the embeddings that the hook gives are those that the table would give."""
    import torch

    _write(network)
    embeddings, soft = network.get_input_embeddings(), network.soft_prompt
    ids = torch.tensor([soft.tokens], device=network.device)
    with torch.no_grad():
        hooked, plain = embeddings(ids), type(embeddings).forward(embeddings, ids)
    if not torch.equal(hooked, plain):
        raise ModelError(
            f"the embeddings of a {network.config.model_type} are more than a table, so that a soft prompt would be "
            "trained otherwise than it is served; train an adapter of another kind"
        )
