"""Known weaknesses of the pinned versions, by pip-audit: what was not looked up is no pass.

    python tools/audit.py                          # PyPI's data
    python tools/audit.py --vulnerability-service osv --ignore-vuln GHSA-...

Further words are pip-audit's own. Ends with 0 where every pin was looked up and none is known to
be weak, with 1 where one is, with 2 where any could not be looked up: pip-audit itself skips those
and ends with 0, as it does for all of them where its data cannot be reached.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"


def main() -> int:
    """Asks pip-audit, and judges what it says."""
    pins = PINS.read_text().split()
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json",
         "--progress-spinner", "off", "--requirement", str(PINS), *sys.argv[1:]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(
            f"NOT AUDITED: pip-audit ended with {done.returncode} and without a result, so its "
            f"data is out of reach or it failed: {last[:500]}"
        )
        return 2
    status, lines = verdict(pins, answers)
    print("\n".join(lines))
    return status


def verdict(pins: Sequence[str], answers: Sequence[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit status, and what to say.

    Args:
        pins: `name==version`.
        answers: pip-audit's `dependencies`: `name`, then `version` and `vulns`, or `skip_reason`.
    """
    looked_up = {plain(answer["name"]) for answer in answers if "skip_reason" not in answer}
    unknown = [pin for pin in pins if plain(pin.split("==")[0]) not in looked_up]
    weak = [weakness(a, v) for a in answers for v in a.get("vulns", [])]
    lines = [f"{len(weak)} known to be weak:", *weak] if weak else []
    if unknown:
        lines += [
            f"NOT AUDITED: {len(unknown)} of {len(pins)} pins were not looked up; where that is "
            f"all of them, the data is out of reach: {', '.join(unknown)}"
        ]
    if weak or unknown:
        return (1 if weak else 2), lines
    return 0, [f"audited {len(pins)} pins of {PINS.name}: none is known to be weak"]


def weakness(answer: dict[str, Any], found: dict[str, Any]) -> str:
    """A line: the pin, the weakness, the versions without it."""
    fixed = ", ".join(found.get("fix_versions") or []) or "no version"
    return f"  {answer['name']}=={answer['version']}  {found['id']}  repaired in {fixed}"


def plain(name: str) -> str:
    """The name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
