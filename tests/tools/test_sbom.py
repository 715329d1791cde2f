"""The bill of materials is CycloneDX, holds what the wheel needs, and names no place."""

import json
import re
import tomllib
from importlib import metadata

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tools import ROOT, tool

PINS = (ROOT / "constraints.txt").read_text().split()


@pytest.fixture(scope="module")
def sbom():
    return tool("sbom")


@pytest.fixture(scope="module")
def bill(sbom):
    """Of this environment."""
    return sbom.narrowed(sbom.described(), sbom.needed("compress-lm"))


def names(bill):
    return {canonicalize_name(part["name"]) for part in bill["components"]}


def small(version="1.0"):
    """A bill of one package, which is installed wherever the tests run."""
    part = {"type": "library", "name": "pytest", "version": version, "bom-ref": "p"}
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "components": [part],
        "metadata": {"component": {"type": "library", "name": "us", "bom-ref": "root"}},
        "dependencies": [{"ref": "root", "dependsOn": ["p", "gone"]}, {"ref": "gone"}],
    }  # fmt: skip


def test_the_bill_is_valid_cyclonedx(bill):
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    # an address a package: the grammar of each takes the validator 50 ms; the program checks all
    parts = [
        {**part, "externalReferences": part.get("externalReferences", [])[:1]}
        for part in bill["components"]
    ]
    tools = bill["metadata"]["tools"]["components"]
    short = [{k: v for k, v in tool.items() if k != "externalReferences"} for tool in tools]
    told = {**bill["metadata"], "tools": {"components": short}}
    assert (
        validator.validate_str(json.dumps({**bill, "components": parts, "metadata": told})) is None
    )
    assert validator.validate_str(json.dumps({**small(), "components": [{"name": 1}]})) is not None


def test_every_dependency_of_the_wheel_is_in_it_and_no_tool_of_ours(bill):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert asked <= names(bill)
    assert {"aiohttp", "nvidia-nccl-cu13"} & names(bill) == {"aiohttp"}  # fsspec[http] of datasets
    assert not {"pytest", "ruff", "optuna", "deepspeed", "onnx", "compress-lm"} & names(bill)


def test_every_edge_leads_to_a_package_of_the_bill(bill):
    refs = {part["bom-ref"] for part in bill["components"]}
    root = bill["metadata"]["component"]["bom-ref"]
    edges = {edge["ref"]: edge["dependsOn"] for edge in bill["dependencies"]}
    assert set(edges) == refs | {root}
    assert {ref for ends in edges.values() for ref in ends} == refs


def test_every_package_has_its_version_its_purl_and_a_license(bill):
    for part in bill["components"]:
        assert part["version"] and part["purl"].startswith("pkg:pypi/"), part["name"]
        assert part["licenses"], part["name"]
    assert bill["metadata"]["component"]["licenses"][0]["license"]["id"] == "Apache-2.0"


def test_the_versions_are_the_pinned_ones(sbom, bill):
    assert sbom.unpinned(bill, PINS) == []


def test_no_folder_of_this_machine_stands_in_it(bill):
    text = json.dumps(bill)
    assert str(ROOT) not in text and not re.search(r"file:|/(home|opt|root|tmp|usr)/", text)


def test_a_license_that_is_no_spdx_name_is_told_as_it_stands(sbom, monkeypatch):
    monkeypatch.setattr(sbom.metadata, "metadata", lambda name: {"License": "Apache 2.0\n License"})
    part = sbom.narrowed(small(), {"pytest"})["components"][0]
    assert part["licenses"] == [
        {"license": {"name": "Apache 2.0 License", "acknowledgement": "declared"}}
    ]


def test_what_cyclonedx_did_not_see_is_named(sbom):
    with pytest.raises(ValueError, match="did not see torch"):
        sbom.narrowed(small(), {"pytest", "torch"})


def test_an_unpinned_version_stops_the_bill_and_writes_nothing(sbom, monkeypatch, tmp_path):
    monkeypatch.setattr(sbom, "described", small)
    monkeypatch.setattr(sbom, "needed", lambda project: {"pytest"})
    monkeypatch.setattr("sys.argv", ["sbom.py", f"out={tmp_path / 'a' / 'b.json'}"])
    with pytest.raises(SystemExit, match=r"pytest 1\.0, pinned \d"):
        sbom.main()
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(sbom, "described", lambda: small(metadata.version("pytest")))
    sbom.main()
    assert names(json.loads((tmp_path / "a" / "b.json").read_text())) == {"pytest"}
