"""lm-eval through the server finds the perplexity that perplexity_eval finds on the weights.

lm-eval cuts a text into windows that follow each other, each scored but for one token of context, the first of which
is the end of text. Those are perplexity_eval's windows with a stride of a token less than the window, over the same
ids with that token before them, where the last window is as long as the others.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from serveproof.bench.perplexity import evaluate
from serveproof.engine.config import read_config
from serveproof.load_test import server_process
from serveproof.pairs import ROOT
from tests.clients import clients
from tests.clients.conftest import PROGRAMS, Said

pytestmark = pytest.mark.skipif(
    "SERVEPROOF_CLIENTS" not in os.environ, reason="lm-eval takes 1.2 GB: `make test-clients` runs it"
)
LONGEST_WINDOW, WINDOWS = 401, 3


def whole_windows(text: str, tokenizer: Tokenizer) -> tuple[str, list[int], int]:
    """(a beginning of the text, its ids, the window that they fill WINDOWS times but for a token each)."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    for window in range(LONGEST_WINDOW, 2, -1):
        count = WINDOWS * (window - 1)
        beginning = text[: encoding.offsets[count - 1][1]]
        ids = tokenizer.encode(beginning, add_special_tokens=False).ids
        if len(ids) == count:
            return beginning, ids, window
    raise AssertionError("the text can't be cut there without another tokenization")


def test_perplexity_is_perplexity_evals(default_model: Path, tmp_path: Path, said: Said) -> None:
    tokenizer = Tokenizer.from_file(str(default_model / "tokenizer.json"))
    text, ids, window = whole_windows((ROOT / "docs/method.md").read_text(), tokenizer)
    end_of_text = read_config(default_model / "config.json").eos_token_ids[0]
    with server_process.started(default_model, ("--dtype", "fp32"), tmp_path / "log") as (base, _):
        nll_nats = clients.lm_eval(PROGRAMS, base, default_model, text, end_of_text, window, tmp_path)
    theirs = float(np.exp(nll_nats / len(ids)))
    (own, *_), _ = evaluate(default_model, np.asarray([end_of_text, *ids]), ["fp32"], window, window - 1)
    said.perplexities += [("lm-eval", len(ids), theirs), ("perplexity_eval", len(ids), own.perplexity)]
    assert own.precision == "fp32"
    assert theirs == pytest.approx(own.perplexity, rel=1e-4)
