"""Builds the wheel and the source distribution, and tries each of them.

Each is installed in an empty environment, in which the training run of the docs has to
succeed.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]


def code() -> str:
    page = ROOT / "docs" / "getting_started.md"
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))


def try_out(archive: Path, folder: Path) -> None:
    environment = folder / f"venv{archive.suffix}"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", archive], check=True)
    # Run outside of the checkout, whose package would be found first.
    subprocess.run([python, "-c", code()], check=True, cwd=folder)
    print(f"{archive.name}: the code of the docs runs", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        distributions = ROOT / "dist"
        build = [sys.executable, "-m", "build", "--outdir", distributions, ROOT]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        for archive in sorted(distributions.iterdir()):
            try_out(archive, folder)


if __name__ == "__main__":
    main()
