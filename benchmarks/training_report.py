"""Renders the results of training as tables, with its goals."""

from collections.abc import Iterator

from .tables import circumstances_table, Goal, goals_table, number, table
from .training_records import Case, Loop, Results


INTRODUCTION = """\
What alternating training costs beside its dynamics steps. Times are medians of
interleaved rounds. *Bare* is a dynamics step that is called again and again with the
same batch, *supplied* one with new batches from the host's memory; *fit* is one of
`fit`, with these and a progress bar. *Targets* is the solve at high fidelity, and
*remainder* one gradient step with these. A *checkpoint* is written and forced onto the
disk while the training waits."""
AMORTIZED = """\
Training with remainder steps, in parts of its dynamics steps alone, if after every n of
these there are m remainder steps. TL-NODE's cadences are 400 and 1 (MNIST), 100 and 1
(density estimation), 10 and 1 (stiff dynamics):"""
SCALING = """\
A dynamics step on devices of one CPU, of which the process is pinned to some cores.
*CPU* is the time that all of them together have worked: where it is the same, nothing
is lost but what one waits for the other."""
DISTURBED = """\
Where a step takes longer than all cores have worked for it, other programs were in the
way: such rows are not compared."""
# TL-NODE's, and one with several inner steps.
CADENCES = ((400, 1), (100, 1), (10, 1), (10, 5))
_MINUTE = 60.0


def render(results: Results) -> str:
    """The whole report, in Markdown."""
    parts = ["# Training", INTRODUCTION, circumstances_table(results)]
    parts += ["## Goals", goals_table([*goals(results)])]
    if results.loops:
        parts += ["## Parts", _parts(results), AMORTIZED, _amortized(results)]
    if results.scalings:
        parts += ["## Devices", SCALING, _scaling(results)]
    return "\n\n".join(parts) + "\n"


def goals(results: Results) -> Iterator[Goal]:
    def name(loop: Loop | Case) -> str:
        return f"{loop.field}, batch {loop.batch}"

    loops = results.loops
    yield Goal(
        "a step of `fit` with its progress bar, in bare steps",
        1.03,
        {name(loop): loop.fit / loop.bare for loop in loops},
    )
    yield Goal(
        "the same, in bare steps with new batches",
        1.03,
        {name(loop): loop.fit / loop.supplied for loop in loops},
    )
    yield Goal(
        "a checkpoint every minute, in parts of the time",
        0.01,
        {name(loop): loop.checkpoint / _MINUTE for loop in loops},
    )
    yield Goal(
        "two devices with a core each, in the time of one with one core (1 / 1.7)",
        1 / 1.7,
        {name(case): 1 / speedup for case, speedup in results.speedups(1, 1)},
    )


def _parts(results: Results) -> str:
    heading = "field batch order | bare ms | supplied ms | fit ms | targets ms"
    heading += " | remainder ms | checkpoint ms | MiB"
    rows = [[*heading.split(" | ")[0].split(), *heading.split(" | ")[1:]]]
    for loop in results.loops:
        milliseconds = [1e3 * seconds for seconds in loop[3:9]]
        size = number(loop.checkpoint_bytes / 2**20)
        rows.append([*map(str, loop[:3]), *map(number, milliseconds), size])
    return table(rows)


def _amortized(results: Results) -> str:
    rows = [["field", "batch", "order", *(f"n = {n}, m = {m}" for n, m in CADENCES)]]
    for loop in results.loops:
        ratios = [f"{loop.amortized(n, m):.3f}" for n, m in CADENCES]
        rows.append([*map(str, loop[:3]), *ratios])
    return table(rows)


def _scaling(results: Results) -> str:
    rows = [["field", "batch", "order", "devices", "cores", "step ms", "CPU ms"]]
    for scaling in results.scalings:
        times = (scaling.seconds, scaling.cpu_seconds)
        rows.append([*map(str, scaling[:5]), *(number(1e3 * t) for t in times)])
    speedups = [
        f"Two devices are {speedup:.2f} times as fast as one on {cores}."
        for cores, count in (("one core", 1), ("two cores", 2))
        for _, speedup in results.speedups(1, count)
    ]
    disturbed = [DISTURBED] if any(s.disturbed for s in results.scalings) else []
    return "\n\n".join([table(rows), *disturbed, *speedups])
