"""Which of two answers is better, by a model that is asked twice: once with each answer first.

A judge favours a position (Zheng et al., Judging LLM-as-a-Judge, arXiv:2306.05685, table 2), so every pair is shown in
both orders and its score is the mean of the two verdicts: 1 for a win, one half for a tie, 0 for a loss. A judge that
always takes the first answer thus makes ties.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.components.core.scoring.statistics import mean_stderr

Ask = Callable[[Sequence[str]], list[str]]
"""Questions in, the judge's answers out."""
QUESTION = """Compare two answers to a request. Judge whether they are right, useful and written in the language of \
the request; length and order are no merit. Give one sentence of reason, then on a line of its own your verdict: [[1]] \
if answer 1 is better, [[2]] if answer 2 is better, [[tie]] if they are equally good.

Request:
{prompt}

Answer 1:
{first}

Answer 2:
{second}"""
_VERDICT = re.compile(r"\[\[\s*(1|2|tie)\s*\]\]", re.IGNORECASE)
_MAX_NEW_TOKENS = 256


class Pair(NamedTuple):
    """A request with the answers of two models."""

    prompt: str
    a: str
    b: str


class Judgement(NamedTuple):
    """The verdicts on a pair: `1` (the first shown), `2`, `tie`, or '' where none could be read."""

    a_first: str
    b_first: str

    def score(self) -> float:
        """What `a` won, in [0, 1]; an unreadable verdict is a tie."""
        return ({"1": 1.0, "2": 0.0}.get(self.a_first, 0.5) + {"1": 0.0, "2": 1.0}.get(self.b_first, 0.5)) / 2


def judge(ask: Ask, pairs: Sequence[Pair]) -> list[Judgement]:
    """The verdicts on each pair in both orders; equal answers are a tie and cost no question."""
    asked = [pair for pair in pairs if pair.a != pair.b]
    a_first = [QUESTION.format(prompt=pair.prompt, first=pair.a, second=pair.b) for pair in asked]
    b_first = [QUESTION.format(prompt=pair.prompt, first=pair.b, second=pair.a) for pair in asked]
    answers = ask([*a_first, *b_first])
    verdicts = [found[-1].lower() if (found := _VERDICT.findall(text)) else "" for text in answers]
    told = iter(zip(verdicts[: len(asked)], verdicts[len(asked) :], strict=True))
    return [Judgement("tie", "tie") if pair.a == pair.b else Judgement(*next(told)) for pair in pairs]


def tally(judgements: Sequence[Judgement]) -> dict[str, float]:
    """win_rate of `a` (ties count half) with its stderr, n, and how far the judge can be trusted.

    first_fraction: of the decided verdicts, the share for the answer shown first; one half is no bias.
    inconsistent_fraction: pairs on which the two orders name different winners. unreadable_fraction: of the verdicts.
    Raises: ValueError if there is nothing to count.
    """
    scores = [judgement.score() for judgement in judgements]
    rate, stderr = mean_stderr(scores)
    verdicts = [verdict for judgement in judgements for verdict in judgement]
    decided = [verdict for verdict in verdicts if verdict in ("1", "2")]
    return {
        "win_rate": rate,
        "stderr": stderr,
        "n": float(len(scores)),
        "first_fraction": decided.count("1") / len(decided) if decided else 0.5,
        "inconsistent_fraction": sum(j.a_first == j.b_first != "tie" and j.a_first != "" for j in judgements)
        / len(scores),
        "unreadable_fraction": verdicts.count("") / len(verdicts),
    }


def judge_named(name: str) -> Ask:
    """The judge of a name: a checkpoint folder, or `model@https://host/v1`, an OpenAI-compatible endpoint whose key
    stands in OPENAI_API_KEY. Both answer greedily.

    Raises: ConfigError if it is neither.
    """
    model, separator, url = name.partition("@")
    if separator and url.startswith(("http://", "https://")):
        return lambda prompts: _ask_endpoint(url.rstrip("/"), model, prompts)
    if Path(name).is_dir():
        from bloomery.components.core.modelling.generation import Generator

        generator = Generator.load(Path(name))
        return lambda prompts: [
            texts[0] for texts in generator.generate([*map(chat, prompts)], max_new_tokens=_MAX_NEW_TOKENS)
        ]
    raise ConfigError(
        f"judge {name!r}: found neither a checkpoint folder nor model@https://host/v1; give one of the two"
    )


def _ask_endpoint(url: str, model: str, prompts: Sequence[str]) -> list[str]:
    def one(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": _MAX_NEW_TOKENS}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["choices"][0]["message"]["content"] or ""
        except urllib.error.HTTPError as error:
            raise ServiceError(f"{url}: the judge {model} answered {error.code} {error.reason}") from None
        except (OSError, ValueError, LookupError) as error:
            raise ServiceError(f"{url}: the judge {model} gave no answer ({type(error).__name__}: {error})") from None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, prompts))
