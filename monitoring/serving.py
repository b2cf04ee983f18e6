"""OpenAI-style chat completions from the champion, with the prediction log that monitoring reads.

One event loop talks HTTP, one thread decodes (`engine.py`), one follows the registry (`champion.py`), one writes the
log. Requests that wait together share a batch; a client that goes away frees its row with the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bloomery.components.core.config import ConfigT, parse
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.repository_code import Consent
from bloomery.monitoring import chat_api
from bloomery.monitoring.answer import Answer
from bloomery.monitoring.champion import Champion
from bloomery.monitoring.chat_api import ApiError, ChatRequest, Completion, Feedback
from bloomery.monitoring.engine import Engine, QueueFullError, Row, Served
from bloomery.monitoring.prediction_log import PredictionLog
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.monitoring.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that did not wait; nobody reads it."""


def serve(
    name: str,
    log_uri: str,
    config: ServingConfig,
    *,
    host: str,
    port: int,
    adapters: Mapping[str, Path] | None = None,
    base: Path | None = None,
    consents: Sequence[Consent] = (),
) -> None:
    """Answer until SIGTERM or SIGINT; then what was asked is answered, and the prediction log written.

    `adapters` answer under their names, on the champion or on the checkpoint `base` in its place; `consents` are the
    recipe's to code of models.
    Raises: ConfigError if there is no champion or the address is taken, ModelError if the champion does not load or an
    adapter does not fit it, ServiceError if the registry or the log's store is away.
    """
    import uvicorn

    bound_socket = socket.socket()  # taken now, and open when there is something that answers
    bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound_socket.bind((host, port))
    except OSError as error:
        raise ConfigError(f"{host}:{port}: cannot listen there: {error.strerror}; give another --port") from None
    champion = Champion(name, config, adapters, base, consents)
    log = PredictionLog(log_uri, flush_rows=config.flush_rows, flush_seconds=config.flush_seconds)
    app = Server(champion, log, config).app()
    # uvicorn raises a signal again when it has shut down; by then it has been obeyed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    address, bound = bound_socket.getsockname()[:2]
    logger.info("%s version %s on http://%s:%d", name, champion.served.version, address, bound)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on")).run(sockets=[bound_socket])
    champion.close()
    log.close()
    logger.info("prediction log: %d rows written, %d lost, masked %s", log.num_written, log.num_lost, dict(log.masked))


class Server:
    """The HTTP side: routes, admission, and what an answer leaves in the log."""

    def __init__(self, champion: Champion, log: PredictionLog, config: ServingConfig) -> None:
        self._champion = champion
        self._log = log
        self._config = config
        self._answers: dict[Row, Answer] = {}
        self._num_requests = 0

    def app(self) -> Starlette:
        """The ASGI application; its engine lives as long as it does."""
        routes = [
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/feedback", self.feedback, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
        ]
        handlers: Any = {ApiError: _tell, HTTPException: _tell_http}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        engine = VllmEngine if self._config.engine == "vllm" else Engine
        self._engine = engine(self._config, lambda rows: loop.call_soon_threadsafe(self._wake, rows))
        yield
        await asyncio.to_thread(self._engine.close)

    def _wake(self, rows: list[Row]) -> None:
        for row in rows:
            answer = self._answers.get(row)
            if answer and (answer.wants_every_token or row.finish_reason):
                answer.changed.set()
            if row.finish_reason:  # even one whose client left before its stream began
                self._answers.pop(row, None)

    async def health(self, request: Request) -> Response:
        """What is served, what waits, what is wrong."""
        served = self._champion.served
        return JSONResponse(
            {
                "status": "ok",
                "model": served.name,
                "version": served.version,
                "problem": self._champion.problem,
                "requests": self._num_requests,
                "batches": self._engine.num_batches,
                "running": len(self._answers) - self._engine.num_waiting,
                "waiting": self._engine.num_waiting,
                "log": {
                    "uri": self._log.uri,
                    "written": self._log.num_written,
                    "lost": self._log.num_lost,
                    "masked": dict(self._log.masked),
                },
            }
        )

    async def models(self, request: Request) -> Response:
        """The model that is served, and the adapters on it."""
        served = self._champion.served
        common = {"object": "model", "owned_by": f"version {served.version}"}
        adapters = [{"id": name, **common, "parent": served.name} for name in self._champion.adapters]
        return JSONResponse({"object": "list", "data": [{"id": served.name, **common}, *adapters]})

    async def feedback(self, request: Request) -> Response:
        """Take a late label."""
        asked = await self._body(request, Feedback)
        if asked.feedback is None and asked.label is None:
            raise ApiError(400, "neither feedback nor label: give one of them, or both")
        self._log.label(asked.id, label=asked.label, feedback=asked.feedback)
        return JSONResponse({"id": asked.id, "object": "feedback"}, status_code=202)

    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation."""
        started, start = datetime.now(UTC), time.perf_counter()
        asked = await self._body(request, ChatRequest)
        served = self._asked_for(asked.model)
        answers = self._submit(asked, served)
        completion = Completion(f"chatcmpl-{uuid.uuid4().hex}", served.name, served.version)

        def finished() -> dict[str, int]:
            seconds = time.perf_counter() - start
            identities = [completion.id, *(f"{completion.id}-{index}" for index in range(1, len(answers)))]
            self._log.append(
                answer.prediction(identity, started, seconds, asked.conversation())
                for identity, answer in zip(identities, answers, strict=True)
            )
            return chat_api.usage(len(answers[0].row.prompt), sum(answer.num_tokens for answer in answers))

        if asked.stream:
            stream = self._stream(asked, answers, completion, finished)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        with self._following(answers):
            if not await _unless_gone(request, asyncio.gather(*(_whole(answer) for answer in answers))):
                return Response(status_code=CLIENT_CLOSED_REQUEST)
        choices = [
            chat_api.choice(index, answer.text, answer.finish_reason, answer.logprobs() if asked.logprobs else None)
            for index, answer in enumerate(answers)
        ]
        return JSONResponse(completion.whole(choices, finished()))

    def _asked_for(self, model: str) -> Served:
        """What answers to the name `model` now."""
        served, adapters = self._champion.served, self._champion.adapters
        if model in adapters:
            return adapters[model]
        if model not in ("", served.name, f"{served.name}:{served.version}"):
            also = f", with the adapters {', '.join(adapters)}" if adapters else ""
            message = f"no model '{model}' here; served is {served.name}:{served.version}{also}"
            raise ApiError(404, message, "model_not_found")
        return served

    def _submit(self, asked: ChatRequest, served: Served) -> list[Answer]:
        """Queue the answers of `served` to a request."""
        config = self._config
        try:
            prompt = served.prompt_tokens(asked.conversation())
        except DataError as error:
            raise ApiError(400, str(error)) from None
        except Exception as error:  # a template says what it does not accept by whatever exception it likes
            raise ApiError(400, f"messages: the model's chat template does not accept them: {error}") from None
        room = served.context_tokens - len(prompt)
        limit = asked.max_completion_tokens or asked.max_tokens
        if room < (limit or 1):
            raise ApiError(
                400,
                f"the context is {served.context_tokens} tokens; the messages have {len(prompt)} and the answer may "
                f"have {limit or 1}: shorten the messages or lower max_tokens",
                "context_length_exceeded",
            )
        temperature = config.temperature if asked.temperature is None else asked.temperature
        answers = [
            Answer(
                Row(
                    served,
                    prompt,
                    max_new_tokens=limit or min(config.max_new_tokens, room),
                    temperature=temperature,
                    top_p=asked.top_p or 1.0,
                    seed=None if asked.seed is None else f"{asked.seed}-{index}",
                ),
                asked.stops,
                is_streamed=asked.stream,
            )
            for index in range(asked.n)
        ]
        # Known before they are queued: the first token may come at once.
        self._answers.update((answer.row, answer) for answer in answers)
        try:
            self._engine.submit([answer.row for answer in answers])
        except QueueFullError:
            self._forget(answers)
            message = f"{self._engine.num_waiting} answers wait already; try again in a moment"
            raise ApiError(503, message, "overloaded") from None
        self._num_requests += 1
        return answers

    @contextlib.contextmanager
    def _following(self, answers: Sequence[Answer]) -> Iterator[None]:
        """Whoever leaves early frees the rows."""
        try:
            yield
        finally:
            self._forget(answers)

    def _forget(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            answer.row.is_cancelled = True
            self._answers.pop(answer.row, None)

    async def _stream(
        self, asked: ChatRequest, answers: Sequence[Answer], completion: Completion, finished: Callable[[], Any]
    ) -> AsyncIterator[bytes]:
        parts: asyncio.Queue[tuple[int, str] | ApiError | None] = asyncio.Queue()

        async def follow(index: int, answer: Answer) -> None:
            try:
                async for text in answer.parts():
                    parts.put_nowait((index, text))
                parts.put_nowait(None)
            except ApiError as error:
                parts.put_nowait(error)

        with self._following(answers):
            followers = [asyncio.ensure_future(follow(index, answer)) for index, answer in enumerate(answers)]
            try:
                role = {"role": "assistant", "content": ""}
                yield completion.chunk([chat_api.delta(index, role) for index in range(len(answers))])
                open_answers = len(answers)
                while open_answers:
                    part = await parts.get()
                    if isinstance(part, ApiError):
                        yield chat_api.event(part.body())
                        return
                    if part is None:
                        open_answers -= 1
                    else:
                        yield completion.chunk([chat_api.delta(part[0], {"content": part[1]})])
            finally:
                for follower in followers:
                    follower.cancel()
        used = finished()
        yield completion.chunk(
            [
                chat_api.delta(index, {}, answer.finish_reason, answer.logprobs() if asked.logprobs else None)
                for index, answer in enumerate(answers)
            ]
        )
        if asked.stream_options and asked.stream_options.include_usage:
            yield completion.chunk([], used)
        yield chat_api.event("[DONE]")

    async def _body(self, request: Request, form: type[ConfigT]) -> ConfigT:
        """The body of a request. Raises: ApiError naming every problem."""
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > self._config.max_request_bytes:
                raise ApiError(413, f"the request is larger than {self._config.max_request_bytes} bytes")
        try:
            values = json.loads(bytes(content))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON: {str(error)[:200]}") from None
        if not isinstance(values, dict):
            raise ApiError(400, f"the body is a JSON {type(values).__name__}, expected an object")
        try:
            return parse(form, values)
        except ConfigError as error:
            raise ApiError(400, str(error)) from None


async def _whole(answer: Answer) -> None:
    async for _ in answer.parts():
        pass


async def _unless_gone(request: Request, answered: asyncio.Future[Any]) -> bool:
    """Wait for the answers; False, and they are cancelled, if the client goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({answered, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answered.done():
            answered.result()
            return True
        answered.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answered
        return False
    finally:
        leaving.cancel()


async def _tell(request: Request, error: Any) -> Response:
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


async def _tell_http(request: Request, error: Any) -> Response:
    """Unknown paths and methods, in the same form."""
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _tell(request, ApiError(error.status_code, message))
