"""Kills a training run again and again, and compares its end with an undisturbed one's.

The training run is a command that writes checkpoints into the folder named by its last
argument, and prints, as its last line, a digest of all that it has trained.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def digest(command: Sequence[str], folder: Path) -> str:
    """Runs the training to its end, and returns the digest."""
    result = subprocess.run([*command, folder], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"The training run failed:\n{result.stderr}")
    return result.stdout.strip().splitlines()[-1]


def kill(command: Sequence[str], folder: Path, seconds: float, *, writing: bool) -> str:
    """Kills the run some time after its first checkpoint.

    With `writing`, kills it while it writes the next checkpoint after that time.

    Returns the name of the last checkpoint at that time.
    """
    before = newest(folder)
    with subprocess.Popen(
        [*command, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while newest(folder) == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(seconds)
        while writing and not half_written(folder) and process.poll() is None:
            pass  # A write takes milliseconds.
        process.send_signal(signal.SIGKILL)
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(
            "The training run ended before it was killed: make it longer."
        )
    return newest(folder)


def half_written(folder: Path) -> int:
    return len(list(folder.glob(".*.unfinished")))


def newest(folder: Path) -> str:
    return max((path.name for path in folder.glob("step-*.ckpt")), default="none")


def kill_and_resume(
    command: Sequence[str], folder: Path, kills: int, most_seconds: float, seed: int
) -> Iterator[str]:
    """Returns the lines of a log. The last two are digests: undisturbed, and killed."""
    rng = random.Random(seed)
    undisturbed = digest(command, folder / "undisturbed")
    killed = folder / "killed"
    for number in range(1, kills + 1):
        seconds = rng.uniform(0, most_seconds)
        # Kill at any moment and while a checkpoint is written, in turn.
        last = kill(command, killed, seconds, writing=number % 2 == 0)
        yield (
            f"kill {number}: {seconds:.3f} s after the first checkpoint of this "
            f"process; last checkpoint {last}, {half_written(killed)} half-written"
        )
    resumed = digest(command, killed)
    yield f"undisturbed: {undisturbed}"
    yield f"killed:      {resumed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--most-seconds", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="+", help="what to run, after `--`")
    options = parser.parse_args()
    command = [sys.executable if c == "python" else c for c in options.command]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for line in kill_and_resume(
            command, Path(folder), options.kills, options.most_seconds, options.seed
        ):
            print(line, flush=True)
            lines.append(line.split()[-1])
    if lines[-1] != lines[-2]:
        sys.exit("failed: the digests differ")


if __name__ == "__main__":
    main()
