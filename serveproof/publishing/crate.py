"""A run as an RO-Crate: Workflow Run Crate 0.5 (w3id.org/ro/wfrun/workflow/0.5), with a hash of every file.

One CreateAction has the Snakefile as its instrument, what the run read as `object`, what it wrote as `result`. Files
that are not in the crate (weights, text) are named by their hash, as RFC 6920 has it: ni:///sha-256;...
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import yaml
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from serveproof.publishing.runs import Run

PROCESS_RUN = "https://w3id.org/ro/wfrun/process/0.5"
WORKFLOW_RUN = "https://w3id.org/ro/wfrun/workflow/0.5"
WORKFLOW_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
PROFILES = {PROCESS_RUN: "Process Run Crate", WORKFLOW_RUN: "Workflow Run Crate", WORKFLOW_CRATE: "Workflow RO-Crate"}
PREVIEW = "ro-crate-preview.html"
TERMS = "https://w3id.org/ro/terms/workflow-run/context"  # has sha256
FORMATS = {
    ".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".json": "application/json",
    ".md": "text/markdown", ".parquet": "application/vnd.apache.parquet", ".py": "text/x-python",
    ".smk": "text/x-python", ".toml": "application/toml", ".yaml": "application/yaml", ".gz": "application/gzip",
    ".safetensors": "application/octet-stream", ".npy": "application/octet-stream",
}  # fmt: skip
README = """results/ its records; workflow/ what made them; ro-crate-metadata.json a SHA-256 of every file.
"""


def sha256(path: Path) -> str:
    """The hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_uri(digest: str) -> str:
    """A SHA-256 in hex as a URI (RFC 6920): what names a file that is elsewhere."""
    return "ni:///sha-256;" + base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=")


def described(path: Path, **more: Any) -> dict[str, Any]:
    """What a file's entity says of it."""
    told = {"name": path.name, "contentSize": str(path.stat().st_size), "sha256": sha256(path)}
    return {**told, "encodingFormat": FORMATS.get(path.suffix, "text/plain"), **more}


def elsewhere(run: Run) -> list[dict[str, Any]]:
    """The inputs that are not in the crate: the files beside the results that this machine still has, else what the
    records say of them."""
    inputs = run.machine.folder.parent / "inputs"
    there = [path for path in sorted(inputs.rglob("*")) if path.is_file() and path.parent.name != "logs"]
    if there:
        return [described(path, alternateName=f"results/inputs/{path.relative_to(inputs)}") for path in there]
    record = run.machine.perplexity
    if record is None:
        return []
    model, text = record.model, record.text
    return [
        {"name": model.name, "sha256": model.source_sha256, "description": f"source of the weights: {model.source}"},
        {"name": text.name, "sha256": text.sha256, "description": f"text, from {text.source}"},
    ]


def _authors(crate: ROCrate, citation: dict[str, Any]) -> list[ContextEntity]:
    """The citation's authors; an entity author (`name:`) is an organization."""
    found = []
    for one in citation["authors"]:
        name = one.get("name") or f"{one['given-names']} {one['family-names']}"
        kind = "Organization" if "name" in one else "Person"
        identifier = one.get("orcid") or one.get("website") or "#" + name.replace(" ", "-")
        found.append(crate.add(ContextEntity(crate, identifier, properties={"@type": kind, "name": name})))
    return found


def _one_or_all(entities: list[Any]) -> Any:
    """RO-Crate 1.1 asks for a single value rather than a list of one."""
    return entities[0] if len(entities) == 1 else entities


def write(run: Run, folder: Path, said: str) -> None:
    """Write README.md and ro-crate-metadata.json into `folder`, of the files that lie there.

    folder: holds index.html, results/ and workflow/ of the run. said: what the files of workflow/ are, in a sentence.
    """
    citation = yaml.safe_load((folder / "workflow" / "CITATION.cff").read_text(encoding="utf-8"))
    hardware = run.machine.hardware
    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(TERMS)
    crate.name = f"serveproof on {hardware.name}"
    crate.description = f"Records and report of a run of serveproof on {hardware.name} ({run.name}). {said}"
    crate.datePublished = run.date_utc
    readme = folder / "README.md"
    readme.write_text(f"# {crate.name}\n\n{crate.description}\n\nindex.html is the report; " + README, encoding="utf-8")
    licence = ContextEntity(
        crate,
        f"https://spdx.org/licenses/{citation['license']}",
        properties={"@type": "CreativeWork", "name": citation["license"]},
    )
    crate.license = crate.add(licence)
    authors = _authors(crate, citation)
    crate.root_dataset["author"] = _one_or_all(authors)
    crate.publisher = authors[0]
    crate.root_dataset["conformsTo"] = [
        crate.add(
            ContextEntity(
                crate, uri, properties={"@type": "CreativeWork", "name": name, "version": uri.rsplit("/", 1)[1]}
            )
        )
        for uri, name in PROFILES.items()
    ]

    snakefile = folder / "workflow" / "Snakefile"
    workflow = crate.add_workflow(
        snakefile,
        "workflow/Snakefile",
        main=True,
        lang="snakemake",
        properties=described(
            snakefile, name="serveproof", version=citation["version"], description=citation["abstract"]
        ),
    )
    workflow["author"] = _one_or_all(authors)
    workflow["license"] = licence

    crate.add_file(readme, "README.md", properties=described(readme, about={"@id": "./"}))

    def added(path: Path, **more: Any) -> Any:
        return crate.add_file(path, path.relative_to(folder).as_posix(), properties=described(path, **more))

    code = [path for path in sorted((folder / "workflow").rglob("*")) if path.is_file() and path != snakefile]
    read_here = [added(path) for path in code]
    read_elsewhere = [crate.add_file(hash_uri(one["sha256"]), properties=one) for one in elsewhere(run)]
    written = [added(folder / "index.html", name="the report")]
    for path in run.files:
        origin = run.origins.get(path)
        changed = ", with changes that no commit holds" if origin and origin.dirty else ""
        at = {"description": f"made at commit {origin.commit}{changed}"} if origin else {}
        written.append(added(folder / "results" / path, **at))
    action = crate.add_action(
        workflow,
        f"#run-{run.name}",
        object=[*read_here, *read_elsewhere],
        result=written,
        properties={
            "name": f"Run of serveproof on {hardware.name}",
            "endTime": run.date_utc,
            "actionStatus": "http://schema.org/CompletedActionStatus",
            "description": f"Command of the newest record: {run.newest.command}" if run.newest else said,
        },
    )
    crate.root_dataset["mentions"] = action
    # rocrate's own preview does not escape what the records say; site.py writes this one
    preview = {
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "name": "Files of this run",
        "encodingFormat": "text/html",
    }
    crate.add(ContextEntity(crate, PREVIEW, properties=preview))
    crate.write(folder)
