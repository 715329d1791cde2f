import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; skips where mounting is not allowed."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        answer = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if answer.returncode:
        pytest.skip(f"mounting is not allowed here: {answer.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
