"""Each run's RO-Crate against what its profiles say MUST be, and its hashes against the files.

The rules are those of RO-Crate 1.1 (w3id.org/ro/crate/1.1: root data entity, data entities), Workflow RO-Crate 1.0
(about.workflowhub.eu/Workflow-RO-Crate), Process Run Crate 0.5 and Workflow Run Crate 0.5 (w3id.org/ro/wfrun).
roc-validator, which holds crates against the same rules, can't be among the tests: it reads JSON-LD contexts from the
network, and its rich<14 is older than what Snakemake's lock has.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from rocrate.rocrate import ROCrate

from serveproof.publishing.crate import hash_uri

RUNS = ("published/h200", "published/2x_h200", "hostile/cpu")
Graph = dict[str, dict[str, Any]]


@pytest.fixture(params=RUNS)
def folder(request: pytest.FixtureRequest) -> Path:
    name, _, run = request.param.partition("/")
    made: Path = request.getfixturevalue(name)
    return made / run


@pytest.fixture
def graph(folder: Path) -> Graph:
    entities = json.loads((folder / "ro-crate-metadata.json").read_text(encoding="utf-8"))["@graph"]
    assert len({one["@id"] for one in entities}) == len(entities), "an @id is one entity's"
    return {one["@id"]: one for one in entities}


def ids(value: Any) -> list[str]:
    """The @ids of one reference, or of a list."""
    return [one["@id"] for one in (value if isinstance(value, list) else [value])]


def types(entity: dict[str, Any]) -> set[str]:
    kind = entity["@type"]
    return {kind} if isinstance(kind, str) else set(kind)


def action_of(graph: Graph) -> dict[str, Any]:
    (action,) = [one for one in graph.values() if one["@type"] == "CreateAction"]
    return action


def test_the_root_is_described(graph: Graph) -> None:
    descriptor, root = graph["ro-crate-metadata.json"], graph["./"]
    assert ids(descriptor["about"]) == ["./"]
    assert "https://w3id.org/ro/crate/1.1" in ids(descriptor["conformsTo"])
    assert types(root) == {"Dataset"}
    assert root["name"]
    assert root["description"]
    datetime.datetime.fromisoformat(root["datePublished"])
    assert ids(root["license"]) == ["https://spdx.org/licenses/Apache-2.0"]
    for uri in ("https://w3id.org/ro/wfrun/process/0.5", "https://w3id.org/ro/wfrun/workflow/0.5"):
        assert uri in ids(root["conformsTo"])
        assert types(graph[uri]) == {"CreativeWork"}


def test_the_main_workflow_is_a_file_of_the_crate(graph: Graph, folder: Path) -> None:
    (main,) = ids(graph["./"]["mainEntity"])
    workflow = graph[main]
    assert types(workflow) >= {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    assert main in ids(graph["./"]["hasPart"])
    assert (folder / main).is_file()
    language = graph[ids(workflow["programmingLanguage"])[0]]
    assert types(language) == {"ComputerLanguage"}
    assert language["name"] == "Snakemake"


def test_the_run_is_an_action_of_the_workflow(graph: Graph) -> None:
    action = action_of(graph)
    assert ids(action["instrument"]) == ids(graph["./"]["mainEntity"])
    assert ids(graph["./"]["mentions"]) == [action["@id"]]
    assert action["name"]
    datetime.datetime.fromisoformat(action["endTime"])
    assert action["actionStatus"] == "http://schema.org/CompletedActionStatus"
    for side in ("object", "result"):
        for one in ids(action[side]):
            assert "File" in types(graph[one]), one


def test_every_reference_is_of_an_entity(graph: Graph) -> None:
    # the last two are of rocrate's entity for Snakemake
    elsewhere = {"https://w3id.org/ro/crate/1.1", "https://snakemake.readthedocs.io"}
    elsewhere |= {"https://doi.org/10.1093/bioinformatics/bts480"}
    for entity in graph.values():
        for value in entity.values():
            references = value if isinstance(value, list) else [value]
            for one in references:
                if isinstance(one, dict):
                    assert one["@id"] in graph or one["@id"] in elsewhere, (entity["@id"], one)


def test_every_file_is_in_the_crate_with_its_hash(graph: Graph, folder: Path) -> None:
    unlisted = {"ro-crate-metadata.json", "ro-crate-preview.html"}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - unlisted
    files = {unquote(name): one for name, one in graph.items() if "File" in types(one) and not name.startswith("ni:")}
    assert set(files) == there
    for name, one in files.items():
        content = (folder / name).read_bytes()
        assert one["sha256"] == hashlib.sha256(content).hexdigest(), name
        assert one["contentSize"] == str(len(content)), name
    assert set(files) <= {unquote(part) for part in ids(graph["./"]["hasPart"])}


def test_every_input_and_every_output_is_in_the_action(graph: Graph, folder: Path) -> None:
    action = action_of(graph)
    read, written = ids(action["object"]), [unquote(one) for one in ids(action["result"])]
    assert not set(read) & set(written)
    assert {one for one in read if one.startswith("workflow/kernels/")}
    assert "workflow/config/config.yaml" in read
    results = {path.relative_to(folder).as_posix() for path in (folder / "results").rglob("*") if path.is_file()}
    assert set(written) == results | {"index.html"}


def test_an_input_that_is_elsewhere_is_named_by_its_hash(hostile: Path) -> None:
    entities = json.loads((hostile / "cpu" / "ro-crate-metadata.json").read_text(encoding="utf-8"))["@graph"]
    (weights,) = [one for one in entities if one["@id"].startswith("ni:")]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert (weights["sha256"], weights["@id"]) == (digest, hash_uri(digest))
    assert weights["alternateName"] == "results/inputs/model/weights.safetensors"


def test_a_hash_is_named_as_rfc_6920_has_it() -> None:
    # section 8.1 of the RFC: the SHA-256 of "Hello World!"
    digest = hashlib.sha256(b"Hello World!").hexdigest()
    assert hash_uri(digest) == "ni:///sha-256;f4OxZX_x_FO5LcGBSKHWXfwtSx-j1ncoSt3SABJtkGk"


def test_rocrate_reads_it_back(folder: Path) -> None:
    crate = ROCrate(folder)
    assert crate.mainEntity.id == "workflow/Snakefile"
    assert not [one.id for one in crate.data_entities if "File" in str(one.type) and not one.get("sha256")]
