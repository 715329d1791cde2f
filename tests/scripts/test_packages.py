"""Claims about the packages: wheel and sdist hold all they need, and run outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = (
    "compress/py.typed",
    "compress/recipes/train.yaml",
    "compress/recipes/recipe/distill_qat.yaml",
    "compress/recipes/sweep/schemes.yaml",
    "compress/callbacks/routed_distillation.md",
    "compress/plan/accelerators.json",
)
SHORT = ("recipe=distill_qat", "trainer.max_steps=5", "teacher.max_steps=5", "teacher.layers=2",
         "teacher.hidden=64", "student.layers=1", "data.max_bytes=3000000", "data.vocab_size=512",
         "trainer.batch_size=2", "trainer.validation_batches=2", "logger=none")  # fmt: skip


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A wheel built from the sdist, which was built from a copy: the checkout stays as it is."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository, to copy what it tracks")
    pytest.importorskip("build")
    place = tmp_path_factory.mktemp("packages")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (place / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / "copy" / name)
    # by default the wheel is built from the unpacked sdist: what that lacks, the wheel lacks
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"),
         str(place / "copy")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return {path.suffix: path for path in (place / "dist").iterdir()}


@pytest.mark.nightly
def test_wheel_and_sdist_hold_recipes_cards_and_types(packages):
    inside = zipfile.ZipFile(packages[".whl"]).namelist()
    assert [name for name in NEEDED if name not in inside] == []
    assert not [name for name in inside if name.startswith(("tests", "benchmarks", "scripts/"))]
    with tarfile.open(packages[".gz"]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "recipes/train.yaml"} <= held


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", [".gz", ".whl"])
def test_a_package_installs_and_trains_outside_the_checkout(packages, suffix, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # what it depends on, pip too, comes from this environment, whose own .pth files do not run
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    installed = subprocess.run(  # --ignore-installed: this environment's own copy is left alone
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         "--ignore-installed", str(packages[suffix])],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr[-2000:]
    where = subprocess.run(
        [python, "-c", "import compress.callbacks; print(compress.callbacks.__file__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert where.startswith(site)
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [python.with_name("compress-train"), *SHORT], cwd=tmp_path / "work", text=True,
        capture_output=True, check=False,
        env={**os.environ, "COMPRESS_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Verified:   yes" in done.stdout
    assert list((tmp_path / "work" / "runs").glob("distill_qat/*/export/vllm/model.safetensors"))
