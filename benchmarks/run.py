"""`make bench`: every benchmark of a CPU, or one of them, and then the tables.

    python benchmarks/run.py all
    python benchmarks/run.py peers --only grpo --laps 15
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "peers": ["versus.py"], "levers": ["levers.py"], "scaling": ["scaling.py"], "start": ["study.py", "start"],
    "workers": ["study.py", "workers"], "processes": ["study.py", "processes"],
}  # fmt: skip


def main() -> None:
    asked, arguments = sys.argv[1], sys.argv[2:]
    if asked != "all" and asked not in PARTS:
        sys.exit(f"There is no benchmark {asked!r}; there are {', '.join(PARTS)}, and all.")
    for part in PARTS if asked == "all" else (asked,):
        script, *words = PARTS[part]
        subprocess.run([sys.executable, str(HERE / script), *words, *arguments], check=True)
    subprocess.run([sys.executable, str(HERE / "tables.py")], check=True)


if __name__ == "__main__":
    main()
