"""The bill of materials of a release: what `pip install compress-lm` brings, without extras.

    python tools/sbom.py [out=dist/compress_lm-VERSION.cdx.json]

cyclonedx-py describes this environment (CycloneDX 1.6, JSON, no times in it: the same environment
gives the same bytes); of that, what the wheel needs is kept, and checked against CycloneDX's
schema. A version that constraints.txt does not pin stops it: the bill tells of what was tested.
"""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "compress-lm"


def main() -> None:
    """Describes, narrows, checks, and writes the bill."""
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    default = ROOT / "dist" / f"compress_lm-{metadata.version(PROJECT)}.cdx.json"
    out = Path(words.get("out", default))
    bill = narrowed(described(), needed(PROJECT))
    if wrong := unpinned(bill, (ROOT / "constraints.txt").read_text().split()):
        sys.exit("not what constraints.txt pins, so install it anew:\n" + "\n".join(wrong))
    text = json.dumps(bill, indent=2) + "\n"
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"not valid CycloneDX 1.6: {error}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    unknown = [part["name"] for part in bill["components"] if not part.get("licenses")]
    print(
        f"{out}: {len(bill['components'])} packages, no license in {', '.join(unknown) or 'none'}"
    )


def described() -> dict[str, Any]:
    """This environment, as cyclonedx-py sees it."""
    done = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--sv",
         "1.6", "--of", "JSON", "--mc-type", "library", "--no-validate", "--pyproject",
         str(ROOT / "pyproject.toml"), sys.executable],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"cyclonedx-py ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout))


def needed(project: str) -> set[str]:
    """Names of all that a project needs here, directly or not; extras where they are asked for."""
    open_, seen = [(canonicalize_name(project), "")], set()
    while open_:
        name, extra = open_.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                open_ += [(canonicalize_name(wanted.name), e) for e in ("", *wanted.extras)]
    return {name for name, _ in seen} - {canonicalize_name(project)}


def narrowed(bill: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The bill with these components alone; a license is taken from their metadata if it lacks.

    cyclonedx-py leaves out a `License` that is no SPDX name ("Apache 2.0 License"): it is told as
    it stands there.
    """
    parts = [part for part in bill["components"] if canonicalize_name(part["name"]) in names]
    if missing := names - {canonicalize_name(part["name"]) for part in parts}:
        raise ValueError(f"cyclonedx-py did not see {', '.join(sorted(missing))}")
    for part in parts:
        told = re.sub(r"\s+", " ", metadata.metadata(part["name"]).get("License") or "").strip()
        if not part.get("licenses") and told:
            part["licenses"] = [{"license": {"name": told, "acknowledgement": "declared"}}]
    refs = {part["bom-ref"] for part in parts} | {bill["metadata"]["component"]["bom-ref"]}
    edges = [
        {**edge, "dependsOn": [ref for ref in edge.get("dependsOn", []) if ref in refs]}
        for edge in bill["dependencies"]
        if edge["ref"] in refs
    ]
    return {**bill, "components": parts, "dependencies": edges}


def unpinned(bill: dict[str, Any], pins: list[str]) -> list[str]:
    """A line for each component of another version than its pin; builds (`+cpu`) do not count."""
    pinned = {canonicalize_name(name): version for name, version in (p.split("==") for p in pins)}
    return [
        f"  {part['name']} {part['version']}, pinned {pinned.get(name, 'nowhere')}"
        for part in bill["components"]
        if pinned.get(name := canonicalize_name(part["name"])) != Version(part["version"]).public
    ]


if __name__ == "__main__":
    main()
