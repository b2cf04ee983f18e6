"""The rows that pass between steps: one class a schema, its name and version, and its Arrow form."""

from __future__ import annotations

import hashlib
import types
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pyarrow as pa


class Record(BaseModel):
    """A row; `SCHEMA` is `name/version`, and a change of fields is a new version."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
    SCHEMA: ClassVar[str]

    @classmethod
    def arrow(cls) -> pa.Schema:
        """The Arrow schema of the rows; only fields that accept None are nullable."""
        import pyarrow as pa

        return pa.schema(
            [pa.field(name, *_arrow(field.annotation)) for name, field in cls.model_fields.items()],
            metadata={"schema": cls.SCHEMA},
        )

    @classmethod
    def table(cls, rows: list[dict[str, Any]]) -> pa.Table:
        """`rows` as an Arrow table of this schema; each row must hold exactly these fields."""
        import pyarrow as pa

        return pa.Table.from_pylist(rows, schema=cls.arrow())


class Source(Record):
    """A file from outside, as it was when preflight saw it."""

    SCHEMA = "source/1"
    uri: str
    """Path or URI."""
    name: str
    """Name of the source in the recipe."""
    bytes: int
    """Size in bytes."""
    sha256: str
    """Digest of the content; for an object store, of its ETag and size."""


class Document(Record):
    """A text to learn from."""

    SCHEMA = "document/2"
    id: str
    """Content hash of the text."""
    text: str
    source: str
    """`<source name in the recipe>:<file>#<line>`."""
    language: str
    """ISO 639-1 code, `und` when undecided."""
    general: bool
    """True for general text, which continued pre-training replays against forgetting; False for the domain."""
    time: str
    """When it was written, as its source tells it, or ''; ISO 8601 sorts rightly."""
    quality: float | None
    """Probability of the learned quality to be good, in [0, 1]; null where none was trained."""


class Indexed(Record):
    """A document that dedup kept, with what later documents are compared with."""

    SCHEMA = "index/1"
    id: str
    source: str
    text: str
    """Read for those documents alone that may be copies of each other."""
    length: int
    """Characters of the text."""
    digest: list[int]
    """128-bit digest of the comparable text, as two numbers of 64 bits."""
    keys: list[int]
    """Hashes of the bands of the MinHash signature."""


class Reject(Record):
    """A row that was not kept, and why."""

    SCHEMA = "reject/1"
    id: str
    source: str
    reason: str
    """Short token: the rule that removed it."""
    detail: str
    """The measured value, or the duplicate it belongs to."""
    text: str
    """The first 500 characters."""


class Coverage(Record):
    """How much of the kept documents falls in a slice."""

    SCHEMA = "coverage/1"
    dimension: str
    """`language`, `source`, `length`, `topic` or `wanted`."""
    slice: str
    """Language code, name of a source, range of words, representative words of a topic, or name of a wanted slice."""
    documents: int
    """Of a topic an estimate, where there are more different texts than its sample holds."""
    words: int
    """Words between spaces."""
    wanted: int
    """Documents the recipe asks for; 0 where it asks for none."""


class Message(Record):
    """One turn of a chat; what it does not have is ''."""

    SCHEMA = "message/2"
    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    reasoning: str
    """What an assistant thought before its answer, where the file keeps it apart from the content."""
    tool_calls: str
    """JSON list of `{"id", "name", "arguments": {…}}`, in the order of the calls."""
    tool_call_id: str
    """Of a tool's turn: the call that it answers."""
    name: str
    """Of a tool's turn: the tool; of others: who speaks."""


class Chat(Record):
    """A conversation to imitate; the loss is on its assistant turns."""

    SCHEMA = "chat/2"
    id: str
    messages: list[Message]
    tools: str
    """JSON list of the definitions of the tools that may be called, or ''."""
    task: str
    """Task of the recipe it belongs to, or ''."""
    origin: str
    """How it came to be: `seed`, `replay`, `given`, `document`, `recombined`, `augmented`, `raft`,
    `sampled`, `corrected` (a wrong answer, asked again and put right: its last turn alone is learnt)."""
    parent: str
    """Id of the row it was made from, or ''; of a given chat `<source name in the recipe>:<file>#<line>`."""


class Prompt(Record):
    """A question with what is needed to verify an answer."""

    SCHEMA = "prompt/2"
    id: str
    task: str
    """Task of the recipe that verifies it."""
    split: str
    """`train`, `unlabelled`, `validation`, or the name of an evaluation set."""
    messages: list[Message]
    """What the answer goes on from: a lone user turn, or a conversation; empty for perplexity tasks."""
    tools: str
    """JSON list of the definitions of the tools that may be called, or ''."""
    reference: str
    """Reference answer, or the text whose perplexity is measured."""
    group: str
    """Slice that results are also reported by, such as the language."""


class Preference(Record):
    """Two answers to one conversation, the first the better; one of them is empty where the other alone is known to be
    good or bad, or the first has a score."""

    SCHEMA = "preference/3"
    id: str
    task: str
    messages: list[Message]
    """What both answer."""
    tools: str
    """JSON list of the definitions of the tools that may be called, or ''."""
    chosen: list[Message]
    rejected: list[Message]
    score: float | None = None
    """What `chosen`, which then stands alone, is worth: more is better, in whatever unit its source has; else null."""


class EvalResult(Record):
    """One model's answer to one evaluation prompt, and its score."""

    SCHEMA = "eval_result/2"
    id: str
    """Id of the prompt, so that two models are compared pairwise."""
    task: str
    split: str
    group: str
    prompt: str
    """As text; of a longer conversation all turns, each a line `role: content`."""
    reference: str
    response: str
    metric: str
    """What `score` is: `accuracy`, `chrf`, `bleu`, `rouge_1`, `rouge_2`, `rouge_l` or `log_likelihood`."""
    repeat: int
    """0 is the evaluation; 1 and on are the same prompts answered again in other batches, from which noise is
    measured."""
    score: float
    """In [0, 1], higher is better; for perplexity tasks, mean log-likelihood in nats per token."""
    weight: float
    """1 for an answer; the number of scored tokens for perplexity."""
    reason: str
    """Why the verifier gave this score."""


class Prediction(Record):
    """One served answer."""

    SCHEMA = "prediction/2"
    id: str
    """Request id; of several answers to one request the later ones end in `-1`, `-2`."""
    time: str
    """ISO 8601, UTC."""
    model_name: str
    model_version: str
    prompt: str
    """The user's turn; of a longer conversation all turns, each a line `role: content`."""
    messages: str = ""
    """The conversation as JSON, a list of turns; of rows that were logged without it, `prompt` as a user's turn."""
    response: str
    latency_seconds: float
    prompt_tokens: int
    response_tokens: int
    mean_log_probability: float | None = None
    """Of the response's tokens, in nats, under the model itself at temperature 1."""
    mean_entropy: float | None = None
    """Of the distributions that the response's tokens were chosen from, in nats, at temperature 1."""
    feedback: float | None
    """User feedback in [0, 1] where given."""
    label: str | None
    """The right answer, where it arrived later."""


class Label(Record):
    """What became known of a prediction after it was served."""

    SCHEMA = "label/1"
    id: str
    """Id of the prediction."""
    time: str
    """When it arrived: ISO 8601, UTC."""
    feedback: float | None
    """User feedback in [0, 1]; null leaves what is known."""
    label: str | None
    """The right answer; null leaves what is known."""


ROWS: dict[str, type[Record]] = {
    record.SCHEMA: record
    for record in (Source, Document, Indexed, Reject, Coverage, Chat, Prompt, Preference, EvalResult, Prediction, Label)
}
"""Every row schema by its name."""


def content_id(*parts: str) -> str:
    """16 hex digits of the sha256 of `parts`, each preceded by its length so that no two lists collide by
    concatenation."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:16]


def _arrow(annotation: Any) -> tuple[Any, bool]:
    """(Arrow type, nullable) of a field annotation."""
    import pyarrow as pa

    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in get_args(annotation) if argument is not type(None))
        return _arrow(inner)[0], True
    if origin is list:
        return pa.list_(_arrow(get_args(annotation)[0])[0]), False
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return pa.struct(list(annotation.arrow())), False
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[annotation], False
