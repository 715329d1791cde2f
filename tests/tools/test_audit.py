"""The audit passes only what was looked up; a fake pip-audit answers instead of the real one."""

import json
import os
import subprocess
import sys

import pytest

from tests.tools import ROOT, tool

PINS = [line for line in (ROOT / "constraints.txt").read_text().split() if line]
WEAK = {"id": "PYSEC-2026-1", "fix_versions": ["9.9"], "aliases": [], "description": "d"}


def answers(**changed):
    """pip-audit's answer to every pin: looked up, nothing known; `changed` by name."""
    for name, version in (pin.split("==") for pin in PINS):
        answer = {"name": name, "version": version, "vulns": []}
        yield {**answer, "vulns": changed[name]} if name in changed else answer


def skipped():
    return [{"name": pin.split("==")[0], "skip_reason": "not found"} for pin in PINS]


def audit(folder, *, prints, status=0, complains="", words=()):
    """tools/audit.py as a process, with a `pip_audit` that prints, complains and ends like this."""
    (folder / "pip_audit.py").write_text(
        "import json, sys\n"
        f"open({str(folder / 'words.json')!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
        f"print({prints!r})\nsys.stderr.write({complains!r})\nsys.exit({status})\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "audit.py", *words], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    return done.returncode, done.stdout


def told(dependencies):
    return json.dumps({"dependencies": list(dependencies), "fixes": []})


def test_pins_that_were_all_looked_up_pass(tmp_path):
    status, said = audit(tmp_path, prints=told(answers()))
    assert status == 0 and f"audited {len(PINS)} pins" in said


def test_a_known_weakness_fails_with_its_name_and_the_repair(tmp_path):
    status, said = audit(tmp_path, prints=told(answers(torch=[WEAK])), status=1)
    assert status == 1
    assert "PYSEC-2026-1" in said and "torch==" in said and "repaired in 9.9" in said


def test_data_out_of_reach_fails_although_pip_audit_ends_with_0(tmp_path):
    status, said = audit(tmp_path, prints=told(skipped()), complains="No known vulnerabilities")
    assert status == 2
    assert f"NOT AUDITED: {len(PINS)} of {len(PINS)}" in said


def test_a_pip_audit_that_breaks_fails_with_its_last_words(tmp_path):
    status, said = audit(tmp_path, prints="", status=1, complains="Traceback\nno such host\n")
    assert status == 2
    assert said.startswith("NOT AUDITED") and "no such host" in said


@pytest.mark.parametrize("prints", ["[]", "{}", '{"dependencies": []}', "null"])
def test_an_answer_without_the_pins_is_no_pass(tmp_path, prints):
    status, said = audit(tmp_path, prints=prints)
    assert status == 2 and "NOT AUDITED" in said


def test_further_words_are_pip_audits_own_and_its_own_resolver_is_off(tmp_path):
    audit(tmp_path, prints=told(answers()), words=["--ignore-vuln", "PYSEC-1"])
    words = json.loads((tmp_path / "words.json").read_text())
    assert words[-2:] == ["--ignore-vuln", "PYSEC-1"]
    assert {"--no-deps", "--disable-pip", str(ROOT / "constraints.txt")} <= set(words)


def test_a_weakness_is_told_beside_what_was_not_looked_up():
    found = [{"name": "A_b", "version": "1", "vulns": [{**WEAK, "fix_versions": []}]}]
    status, lines = tool("audit").verdict(["a-b==1", "c==2"], found)
    assert status == 1
    assert "repaired in no version" in lines[1] and lines[2].endswith(": c==2")
