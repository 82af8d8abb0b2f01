"""Scripts that lease the device."""

from __future__ import annotations

import tempfile

import pytest


@pytest.fixture(autouse=True)
def own_leases(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run elsewhere on this machine must not make these tests wait: they time nothing."""
    folder = str(tmp_path_factory.mktemp("leases"))
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
