"""The routes: OpenAI's, and what operates a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from serveproof.errors import UserError
from serveproof.server import prepare
from serveproof.server.answering import Answering
from serveproof.server.answers import Form
from serveproof.server.engine_client import EngineClient
from serveproof.server.errors import ApiError, from_validation
from serveproof.server.gate import Gate
from serveproof.server.prepare import Model
from serveproof.server.requests import ChatRequest, CompletionRequest, ErrorAnswer, Generation, TokenizeRequest
from serveproof.server.wire import Add, Batch
from serveproof.telemetry.engine_metrics import EngineMetrics

FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": said}
    for status, said in (
        (400, "The request can't be served as it is"),
        (401, "The API key is missing or wrong"),
        (404, "No such model"),
        (408, "The body did not come in time"),
        (413, "The body is too large"),
        (429, "Too many requests; Retry-After says when to come back"),
        (431, "The headers are too large"),
        (503, "The engine is starting, stopped or ended"),
    )
}


# a whole answer, or the events of a stream
ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


def observe(metrics: EngineMetrics, batch: Batch) -> None:
    """The engine's own figures, from each batch."""
    now = batch.snapshot
    metrics.put("serveproof_requests_running", now.running)
    metrics.put("serveproof_requests_waiting", now.waiting)
    metrics.put("serveproof_kv_cache_usage_ratio", now.used_blocks / max(1, now.blocks))
    metrics.put("serveproof_kv_cache_blocks", now.blocks)
    metrics.counted("serveproof_engine_steps", now.steps)
    metrics.counted("serveproof_preemptions", now.preemptions)
    metrics.counted("serveproof_prefix_cache_queried_tokens", now.prefix_asked_tokens)
    metrics.counted("serveproof_prefix_cache_hit_tokens", now.prefix_hit_tokens)


def json_answer(content: Any, status: int = 200) -> Response:
    """JSON with what msgspec encodes."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def make_app(model: Model, client: EngineClient, gate: Gate, metrics: EngineMetrics) -> FastAPI:
    """The application; its lifespan starts and ends the engine."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        client.start()
        yield
        await client.stop()

    app = FastAPI(title="serveproof", version="1", lifespan=lifespan, responses=FAULTS, docs_url=None, redoc_url=None)

    def check(request: Generation) -> None:
        if client.problem:
            raise ApiError(503, client.problem, headers={"Retry-After": "1"})
        if request.model not in (model.name, model.root):
            raise ApiError(
                404, f"model {request.model!r} is not served here; it is {model.name!r}", "model", "model_not_found"
            )

    async def answered(
        http: Request, request: Generation, form: Form, requests: list[Add], top_logprobs: int = 0
    ) -> Response:
        one = Answering(client, gate, metrics, form, requests, top_logprobs)
        receive: Any = http.receive
        return await (one.streamed(receive) if request.stream else one.whole(receive))

    def form_of(request: Generation, kind: str, logprobs: bool, **more: bool) -> Form:
        asked = request.stream_options
        usage, continuous = (asked.include_usage, asked.continuous_usage_stats) if asked else (False, False)
        return Form(prepare.new_id(kind), kind, model, logprobs, usage=usage, continuous_usage=continuous, **more)

    @app.post("/v1/completions", responses=ANSWERS)
    async def completions(request: CompletionRequest, http: Request) -> Response:
        """Continue a prompt, or each of several."""
        check(request)
        params = prepare.completion_params(request)
        form = form_of(
            request, "cmpl", request.logprobs is not None, echo=request.echo, no_text=request.max_tokens == 0
        )
        return await answered(
            http, request, form, prepare.adds(request, prepare.prompts_of(request, model), params, form.id)
        )

    @app.post("/v1/chat/completions", responses=ANSWERS)
    async def chat(request: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        check(request)
        prompt = prepare.chat_prompt([one.as_dict() for one in request.messages], model)
        room = (client.ready.max_model_len if client.ready else 0) - len(prompt)
        params = prepare.chat_params(request, room)
        form = form_of(request, "chatcmpl", request.logprobs)
        requests = prepare.adds(request, [prompt], params, form.id)
        return await answered(http, request, form, requests, request.top_logprobs or 0)

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model that is served."""
        length = client.ready.max_model_len if client.ready else None
        one = {"id": model.name, "object": "model", "created": model.created, "owned_by": "serveproof"}
        return json_answer(
            {"object": "list", "data": [one | {"root": model.root, "parent": None, "max_model_len": length}]}
        )

    @app.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> Response:
        """The token ids of a text or a conversation."""
        ids = prepare.to_tokenize(request, model)
        length = client.ready.max_model_len if client.ready else None
        return json_answer({"count": len(ids), "max_model_len": length, "tokens": ids})

    @app.get("/health", responses={503: FAULTS[503]})
    async def health() -> Response:
        """200 while the engine steps, or could; needs no key."""
        if why := gate.closed or client.problem:
            raise ApiError(503, why, headers={"Retry-After": "1"})
        return json_answer({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def page() -> Response:
        """For Prometheus."""
        metrics.put("serveproof_engine_up", 0 if client.problem else 1)
        metrics.counted("serveproof_engine_restarts", client.restarts)
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def refuse(error: ApiError) -> Response:
        metrics.add("serveproof_requests_refused", 1, str(error.status))
        return error.response()

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return refuse(error)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> Response:
        return refuse(ApiError(400, str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return refuse(from_validation(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return refuse(ApiError(error.status_code, str(error.detail), headers=error.headers))

    _document(app, model)
    return app


def _document(app: FastAPI, model: Model) -> None:
    """Two things that FastAPI does not know: a body that is not valid gets 400, as from OpenAI, not 422; and which
    model there is."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema: dict[str, Any] = made()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("CompletionRequest", "ChatRequest"):
            schema["components"]["schemas"][name]["properties"]["model"] = {"type": "string", "enum": [model.name]}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
