"""The routes: OpenAI's surface, vLLM's for adapters, health and metrics."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.apps.server.gate import Gate
from tunesmith.apps.server.streams import respond
from tunesmith.core.errors import UserError
from tunesmith.run.serving import Exchange, Service
from tunesmith.run.serving_access import Access
from tunesmith.run.serving_chat_requests import ChatRequest, TokenizeRequest, known_fields
from tunesmith.run.serving_errors import RefusedError, from_problems, refusal
from tunesmith.run.serving_messages import MessagesRequest, messages_error
from tunesmith.run.serving_requests import CompletionRequest, EmbeddingRequest, LoadAdapterRequest, UnloadAdapterRequest

if TYPE_CHECKING:
    from fastapi import FastAPI

_ERROR = {
    "description": "What is wrong, in OpenAI's form.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                        "required": ["message", "type", "param", "code"],
                    }
                },
                "required": ["error"],
            }
        }
    },
}


def create_app(
    service: Service, access: Access, log: Callable[[str], None] = lambda _: None, origins: Sequence[str] = ()
) -> Any:
    """Return the ASGI application of *service*; pages of *origins* may use it from browsers."""
    from fastapi import FastAPI
    from fastapi.middleware.cors import CORSMiddleware
    from starlette.concurrency import run_in_threadpool

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:  # noqa: ARG001 - FastAPI's
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="Tunesmith",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={"4XX": _ERROR, "5XX": _ERROR},
    )
    _add_answers(app, service)
    _add_lists(app, service)
    _add_adapters(app, service)
    _add_errors(app)
    app.add_middleware(Gate, access=access, metrics=service.metrics, log=log)
    if origins:  # outside of the gate: a browser asks what is allowed without a key
        headers = ["Authorization", "Content-Type"]
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=headers
        )
    return app


def _add_answers(app: "FastAPI", service: Service) -> None:
    from fastapi import Request
    from starlette.concurrency import run_in_threadpool

    async def answer(request: Request, begin: Callable[[], Exchange]) -> Any:
        exchange = await run_in_threadpool(begin)
        request.scope["tunesmith"].update(model=exchange.served.name, prompt_tokens=exchange.prompt_tokens)
        return await respond(request, exchange)

    @app.post("/v1/chat/completions")
    async def chat_completions(asked: ChatRequest, request: Request) -> Any:
        """Answer a dialogue."""
        return await answer(request, lambda: service.chat(asked))

    @app.post("/v1/messages")
    async def messages(asked: MessagesRequest, request: Request) -> Any:
        """Answer a dialogue as Anthropic's clients ask for it."""
        return await answer(request, lambda: service.message(asked))

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Any:
        """Go on with a text."""
        return await answer(request, lambda: service.complete(asked))

    @app.post("/v1/embeddings")
    async def embeddings(asked: EmbeddingRequest) -> Any:
        """Return the mean of the last hidden states over each text."""
        return await run_in_threadpool(service.embed, asked)

    @app.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> Any:
        """Return the tokens that the model would be given."""
        return await run_in_threadpool(service.tokenize, asked)


def _add_lists(app: "FastAPI", service: Service) -> None:
    from starlette.responses import PlainTextResponse

    @app.get("/v1/models")
    async def models() -> Any:
        """List the base, the adapters and the blends."""
        return {"object": "list", "data": service.models()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        """Return one of them."""
        return service.model(name)

    @app.get("/health")
    async def health() -> Any:
        """Say that the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Any:
        """Return what Prometheus reads."""
        return PlainTextResponse(service.metrics_text(), media_type="text/plain; version=0.0.4")


def _add_adapters(app: "FastAPI", service: Service) -> None:
    from starlette.concurrency import run_in_threadpool

    @app.post("/v1/load_lora_adapter")
    async def load_lora_adapter(asked: LoadAdapterRequest) -> Any:
        """Load an adapter from an allowed folder, or name a blend of those that are loaded."""
        served = await run_in_threadpool(service.load_adapter, asked)
        return service.model(served.name)

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(asked: UnloadAdapterRequest) -> Any:
        """Serve an adapter or a blend no more; what it is writing is written to its end."""
        await run_in_threadpool(service.unload_adapter, asked.lora_name)
        return {"id": asked.lora_name, "object": "model", "deleted": True}


def _add_errors(app: "FastAPI") -> None:
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    def refused(request: Request, error: RefusedError) -> JSONResponse:
        data = error.as_data()
        as_messages = request.url.path == "/v1/messages"
        return JSONResponse(messages_error(data) if as_messages else data, error.status, headers=error.headers)

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> JSONResponse:
        return refused(request, refusal(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        if isinstance(error.body, bytes):
            return refused(request, RefusedError("send JSON, with Content-Type: application/json", status=415))
        problems = [{**each, "loc": each["loc"][1:]} for each in error.errors()]
        return refused(request, from_problems(problems, error.body, known_fields(request.url.path)))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        place = f"{request.method} {request.url.path}: " if error.status_code in (404, 405) else ""
        return refused(request, RefusedError(f"{place}{error.detail}", status=error.status_code, headers=error.headers))

    @app.exception_handler(Exception)
    async def our_fault(request: Request, _: Exception) -> JSONResponse:
        """Say no more than that; the traceback goes to the server's own error log."""
        return refused(request, RefusedError("a fault of the server, not of the request", status=500))
