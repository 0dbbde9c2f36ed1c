"""Counts the costs of the public interface: lines, names, and calls of a step.

Writes the table of jobs into its page, and prints all counts.
"""

import re
import traceback
from pathlib import Path

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import optax


_root = Path(__file__).parents[1]
_package = Path(dsr.__file__).parent
PAGE = _root / "docs" / "jobs.md"
_begin, _end = "<!-- counts: begin -->\n", "<!-- counts: end -->"


def lines(*patterns: str) -> int:
    paths = {path for pattern in patterns for path in _root.glob(pattern)}
    return sum(len(path.read_text().splitlines()) for path in paths)


def top_level_names() -> list[str]:
    text = (_package / "__init__.py").read_text()
    return re.findall(r"(\w+) as \1\b", text)


def way_to_the_loss() -> list[tuple[str, str]]:
    """Lists the package's files and functions between a call of `fit` and the loss."""
    way: list[tuple[str, str]] = []

    def loss(model: jax.Array, solver: dfx.AbstractSolver, batch: None) -> jax.Array:
        del solver, batch
        if not way:
            frames = traceback.extract_stack()
            inside = [f for f in frames if Path(f.filename).is_relative_to(_package)]
            way.extend((Path(f.filename).name, f.name) for f in inside)
        return jnp.sum(model**2)

    trainer = dsr.training.Trainer(loss, optax.sgd(0.1))
    state = trainer.init(jnp.ones(1), key=jax.random.key(0))
    dsr.training.fit(trainer, state, lambda key, step: None, num_steps=1)
    return way


def times_entered(way: list[tuple[str, str]]) -> int:
    """Counts how often the way enters the same file, at most."""
    files = [file for i, (file, _) in enumerate(way) if not i or way[i - 1][0] != file]
    return max(files.count(file) for file in files)


def jobs_table() -> str:
    """Makes the table of the jobs on the page: lines and names, before and after."""
    rows = [
        "| job | lines before | after | names before | after |",
        "| --- | --- | --- | --- | --- |",
    ]
    for section in PAGE.read_text().split("\n## ")[1:]:
        title = section.partition("\n")[0]
        before = re.findall(r"```py\n(.*?)```", section, re.DOTALL)
        after = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        if not before:
            continue
        codes = (before[0], after[0])
        counts = [len([x for x in code.splitlines() if x.strip()]) for code in codes]
        names = [len(_names(code)) for code in codes]
        numbers = (counts[0], counts[1], names[0], names[1])
        rows.append(f"| {title} | {' | '.join(map(str, numbers))} |")
    return "\n".join(rows) + "\n"


def _names(code: str) -> set[str]:
    """Finds the names of this package, and methods of its objects."""
    owners = r"(?:dsr(?:\.training)?|quadrature|trainer|solver_state)"
    return set(re.findall(rf"\b{owners}\.(?!training\b)(\w+)", code))


def write_table() -> None:
    head, rest = PAGE.read_text().split(_begin)
    PAGE.write_text(head + _begin + jobs_table() + _end + rest.partition(_end)[2])


def report() -> str:
    way = way_to_the_loss()
    library = lines("diffrax_speedreg/**/*.py")
    training = lines("diffrax_speedreg/_training/*.py", "diffrax_speedreg/training.py")
    scripts = lines("experiments/**/*.py", "benchmarks/*.py", "tools/*.py")
    tests = lines("tests/**/*.py")
    return "\n".join(
        [
            f"library: {library} lines, of which training: {training}",
            f"scripts: {scripts} lines ({scripts / library:.0%} of the library)",
            f"tests: {tests} lines ({tests / library:.0%} of the library)",
            f"top-level names: {len(top_level_names())}",
            f"from `fit` to the loss: {len(way)} functions, no file entered more than "
            f"{times_entered(way)} times: {' > '.join(f'{f}:{n}' for f, n in way)}",
        ]
    )


def main() -> None:
    write_table()
    print(f"{report()}\n\n{jobs_table()}")


if __name__ == "__main__":
    main()
