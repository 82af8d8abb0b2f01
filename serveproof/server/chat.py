"""A conversation as a prompt, by the model's own chat template, in a sandbox: a template comes with a download."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from serveproof.errors import UserError
from serveproof.server.errors import ApiError


class ChatTemplate:
    """text None: the model has none, and every conversation is refused."""

    def __init__(self, text: str | None, special: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
        try:
            self.template = None if text is None else environment.from_string(text)
        except jinja2.TemplateError as error:
            raise UserError(f"the model's chat template can't be read: {error}") from None
        self.special = special

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        """The text to complete. ApiError 400 where the template refuses the conversation, or there is none."""
        if self.template is None:
            raise ApiError(400, "this model has no chat template; use /v1/completions", "messages")
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, **self.special)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ApiError(400, f"messages: the chat template says: {error}", "messages") from None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def load_template(directory: Path) -> ChatTemplate:
    """chat_template.jinja, or chat_template of tokenizer_config.json (one, or the one named default)."""
    config: dict[str, Any] = {}
    file = directory / "tokenizer_config.json"
    if file.exists():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: not JSON: {error}") from None
    text = config.get("chat_template")
    if isinstance(text, list):
        text = next((one["template"] for one in text if one.get("name") == "default"), None)
    own = directory / "chat_template.jinja"
    if own.exists():
        text = own.read_text(encoding="utf-8")
    special = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        special[name] = value.get("content", "") if isinstance(value, dict) else value or ""
    return ChatTemplate(text, special)
