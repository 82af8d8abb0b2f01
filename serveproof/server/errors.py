"""Errors in OpenAI's shape, each with its status."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

# pydantic puts the form that it tried into the place of an error: stop.constrained-str, prompt.list[str]
FORM = re.compile(r"[\[\-]|^(str|int|none)$")
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is not 200. param: the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def content(self) -> dict[str, Any]:
        """The body. A client may send half a surrogate pair, which no UTF-8 has: it comes back as '?'."""
        message = self.message.encode("utf-8", "replace").decode()
        param = self.param.encode("utf-8", "replace").decode() if self.param else None
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code or self.status}}

    def response(self) -> Response:
        """As an answer."""
        body = msgspec.json.encode(self.content)
        return Response(body, self.status, headers=self.headers, media_type="application/json")


def from_validation(errors: list[Any]) -> ApiError:
    """The first field's error in one line that names it. Of a field that takes several forms the error that is about a
    value goes before those that say that it is none of the other forms."""
    field = errors[0]["loc"][:2]
    own = [one for one in errors if one["loc"][:2] == field]
    chosen = next((one for one in own if not one["type"].endswith("_type")), own[0])
    place = ".".join(str(part) for part in chosen["loc"] if part != "body" and not FORM.search(str(part)))
    if chosen["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {chosen.get('ctx', {}).get('error', chosen['msg'])}")
    if chosen["type"] == "extra_forbidden":
        return ApiError(400, f"{place}: this server does not know the field; leave it out", place)
    return ApiError(400, f"{place or 'body'}: {chosen['msg']}", place or None)
