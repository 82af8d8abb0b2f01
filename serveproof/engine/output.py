"""Text out of tokens as they come: characters that span tokens, and stop strings that span them, are held back."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def load_tokenizer(directory: Path | str) -> Tokenizer | None:
    """The tokenizer.json of a model directory, if there is one."""
    path = Path(directory, "tokenizer.json")
    return Tokenizer.from_file(str(path)) if path.exists() else None


class TextStream:
    """The text of one request's output. `held` may not be shown yet; `stopped`: whether a stop string came."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.stream = DecodeStream(skip_special_tokens=True)
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token lets show; a stop string and what follows it never show."""
        if self.stopped:
            return ""
        self.held += self.stream.step(self.tokenizer, token) or ""
        found = [at for stop in self.stop if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self.held = self.held[: min(found)]
            return self.flush()
        show = len(self.held) - max((_overlap(self.held, stop) for stop in self.stop), default=0)
        return self._show(show)

    def flush(self) -> str:
        """The rest, when nothing follows."""
        return self._show(len(self.held))

    def _show(self, count: int) -> str:
        shown, self.held = self.held[:count], self.held[count:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
