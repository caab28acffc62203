"""Known vulnerabilities of the locked versions, by the advisory service of the package index.

    .venv/bin/python .ci/audit.py requirements.lock

The exit status is 1 where a locked version has a known vulnerability. A service that does not answer, or does not
know a package, fails nothing and is said: what was not looked up is not called safe.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

UNREACHABLE = re.compile(r"connection|timed out|max retries|unreachable", re.IGNORECASE)


def audited(lock: str) -> subprocess.CompletedProcess[str]:
    """pip-audit's own run over the lock."""
    pip_audit = Path(sys.executable).with_name("pip-audit")
    options = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json", "--requirement", lock]
    return subprocess.run([str(pip_audit), *options], capture_output=True, text=True, check=False)


def verdict(output: str, errors: str) -> tuple[int, list[str]]:
    """Exit status and lines to print, from what pip-audit wrote to its two streams."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if UNREACHABLE.search(errors):
            return 0, ["The advisory service does not answer: the locked versions were NOT audited."]
        return 2, ["pip-audit failed; the locked versions were NOT audited.", errors.strip()]
    known = [one for one in packages if "skip_reason" not in one]
    found = [(one, vulnerability) for one in known for vulnerability in one["vulns"]]
    lines = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for one, vulnerability in found
    ]
    count = f"{len(known)} of {len(packages)} locked versions audited, {len(found)} known vulnerabilities"
    unknown = len(packages) - len(known)
    lines.append(count + (f"; the service does not know the other {unknown}: they were NOT audited" if unknown else ""))
    return int(bool(found)), lines


if __name__ == "__main__":
    done = audited(sys.argv[1])
    status, said = verdict(done.stdout, done.stderr)
    sys.stdout.write("\n".join(said) + "\n")
    raise SystemExit(status)
