"""The lock holds what constraints.txt pins, each file by its hash, and names no place."""

import re
import subprocess

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.tools import ROOT, tool

LOCK = (ROOT / "requirements.lock").read_text()
ENTRY = re.compile(r"([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)")


def locked():
    return {canonicalize_name(name): version for name, version, _ in ENTRY.findall(LOCK)}


def pinned(file="constraints.txt"):
    lines = (pin.split("==") for pin in (ROOT / file).read_text().split())
    return {canonicalize_name(name): version for name, version in lines}


def test_the_lock_holds_every_pin_and_nothing_else():
    """`make lock` writes it anew after a change of constraints.txt."""
    assert {name: Version(version).public for name, version in locked().items()} == pinned()


def test_every_entry_has_its_hashes():
    body = "".join(line for line in LOCK.splitlines(keepends=True) if not line.startswith("#"))
    assert ENTRY.sub("", body).strip() == ""


def test_torch_is_one_file_of_the_build_for_the_cpu():
    """The index's builds for Linux need CUDA packages, which no pin names."""
    entry = next(e for e in ENTRY.findall(LOCK) if e[0] == "torch")
    assert entry[1].endswith("+cpu") and entry[2].count("--hash=") == 1
    assert [name for name, version in locked().items() if "+" in version] == ["torch"]


def test_the_lock_names_no_index_and_no_folder():
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|/", LOCK)


def test_no_file_is_installed_from_the_lock_without_its_hash():
    told = subprocess.run(
        ["make", "-n", "install-locked"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    installs = [line for line in told if "pip install" in line]
    ours = [line for line in installs if line.endswith("--no-deps --no-build-isolation -e .")]
    assert len(ours) == 1 and len(installs) == 3
    assert all("--require-hashes" in line for line in installs if line not in ours)


def test_ci_installs_as_the_security_page_says():
    """By hash, before anything of it runs, and by version beside it."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    made = [line for line in lines if line.startswith("make")]
    assert made[0] == "make install-locked" and ".venv-by-version" in made[1]
    for page in ("SECURITY.md", "docs/security.md"):
        assert "CI installs by hash" in " ".join((ROOT / page).read_text().split()), page


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cu130"])
def test_torch_of_another_build_is_refused(version):
    file = {"metadata": {"version": version}, "download_info": {"archive_info": {"hashes": {}}}}
    with pytest.raises(SystemExit, match=re.escape(version) + ".*PIP_EXTRA_INDEX_URL"):
        tool("lock").entry_of(file)


def test_a_pin_without_a_hash_stops_the_lock(monkeypatch, tmp_path):
    (tmp_path / "constraints.txt").write_text("a==1\nb==2\ntorch==3\n")
    lock = tool("lock")
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    monkeypatch.setattr(lock, "hashed", lambda pins: ["a==1 \\\n    --hash=sha256:00", "b==2"])
    monkeypatch.setattr(lock, "torch_entry", lambda pin: f"{pin}+cpu \\\n    --hash=sha256:11")
    with pytest.raises(SystemExit, match="no hash for 1 of 3: b==2"):
        lock.main()
    assert not (tmp_path / "requirements.lock").exists()
    monkeypatch.setattr(
        lock, "hashed", lambda pins: [f"{p} \\\n    --hash=sha256:00" for p in pins]
    )
    lock.main()
    written = (tmp_path / "requirements.lock").read_text()
    assert written.startswith(lock.HEAD) and "torch==3+cpu" in written
