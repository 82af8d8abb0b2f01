"""Before any route: the API key, the size of headers and body, and how long a body may take to come."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serveproof.server.errors import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MOST_HEADER_BYTES, BODY_LIMIT_S = 16 * 1024, 30.0
OPEN_ROUTES = ("/health",)


class Guard:
    """ASGI middleware. api_key '' is none. refused: told the status of what is turned away here."""

    def __init__(self, app: Any, api_key: str, most_body_bytes: int, refused: Callable[[int], object]) -> None:
        self.app, self.most_body_bytes, self.refused = app, most_body_bytes, refused
        self.key = api_key.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            body = await asyncio.wait_for(self._body(receive), BODY_LIMIT_S)
        except ApiError as error:
            self.refused(error.status)
            await error.response()(scope, receive, send)
            return
        except TimeoutError:
            self.refused(408)
            late = ApiError(408, f"the body did not come within {BODY_LIMIT_S:g} s", headers={"Connection": "close"})
            await late.response()(scope, receive, send)
            return
        given = False

        async def replayed() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self.app(scope, replayed, send)

    def _check_headers(self, scope: Message) -> None:
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > MOST_HEADER_BYTES:
            raise ApiError(431, f"the headers are more than {MOST_HEADER_BYTES} bytes")
        if self.key and scope["path"] not in OPEN_ROUTES:
            given = next((value for name, value in headers if name == b"authorization"), b"")
            if not hmac.compare_digest(given, b"Bearer " + self.key):
                raise ApiError(
                    401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
                )
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value) > self.most_body_bytes:
                raise self._too_large()

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)
            part = message.get("body", b"")
            size += len(part)
            if size > self.most_body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        said = (
            f"the body is more than {self.most_body_bytes} bytes; send less, or start the server with --max-body-bytes"
        )
        return ApiError(413, said, headers={"Connection": "close"})
