"""What a user names as a model, and how records call it. Never imports torch: the load test asks too."""

from __future__ import annotations

from pathlib import Path

from serveproof.errors import UserError
from serveproof.pairs import ROOT
from serveproof.results import ModelRecord, read

SHAPES = ROOT / "config" / "models"


def find_model(name: str) -> Path:
    """What a user names as a model: a directory, a config.json, or a shape of config/models."""
    shape = SHAPES / f"{name}.json"
    path = shape if shape.exists() else Path(name)
    if not path.exists():
        shapes = ", ".join(sorted(file.stem for file in SHAPES.glob("*.json")))
        raise UserError(f"--model {name}: no such directory, config.json or shape; the shapes are {shapes}")
    return path


def model_name(path: Path) -> str:
    """How a record calls what `find_model` found; a directory that prepare_model wrote by the model in it."""
    if not path.is_dir():
        return path.stem
    try:
        return read(path / "model.json", ModelRecord).name
    except UserError:  # not there, or somebody else's
        return path.name
