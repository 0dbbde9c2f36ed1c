"""What the solvers are meant to reach, and what was measured of it."""

from collections.abc import Iterator

from .runs import ratio, seconds
from .solver_records import KINDS, Results, SmoothSolve
from .solver_smooth import DOPRI8, taylor_name as truncated_name
from .solver_ways import FEWEST_STEPS, PRECISE, taylor_name
from .tables import Goal


_TOLERANCE = 1e-10


def goals(results: Results) -> Iterator[Goal]:
    yield from _floors(results)
    yield from _networks(results)
    if results.smooth:
        yield _smooth(results)


def _floors(results: Results) -> Iterator[Goal]:
    limit = 1.15
    for kind in KINDS:
        found = [one for one in results.floors if one.kind == kind]
        if found:
            yield Goal(
                f"{kind}: at most {limit:g} of the time of a hand-written scan",
                limit,
                {f"p = {one.order}, {one.num_steps} steps": one.ratio for one in found},
            )


def _networks(results: Results) -> Iterator[Goal]:
    """An evaluation, or a gradient step, in the papers' regime: the scaled network."""
    limit = 1 / 25
    for kind in KINDS:
        groups = dict.fromkeys(
            one[:3] for one in results.networks if one[::2][:2] == ("scaled", kind)
        )
        if groups:
            yield Goal(
                f"{kind}, scaled network: {FEWEST_STEPS} steps of p = 1 at most "
                f"{limit:g} of the time of {PRECISE.method} at {PRECISE.setting:g}",
                limit,
                {
                    f"batch {group[1]}": ratio(
                        results.network_seconds(*group, taylor_name(1), FEWEST_STEPS),
                        results.network_seconds(*group, *PRECISE),
                    )
                    for group in groups
                },
            )


def _smooth(results: Results) -> Goal:
    """Of those Taylor solves, of any order and tolerance, that are as precise."""
    figures = {}
    for problem in dict.fromkeys(one.problem for one in results.smooth):
        solves = [one for one in results.smooth if one.problem == problem]
        figures[problem] = _best_to_dopri8(solves)
    return Goal(
        "smooth problems: the fastest truncated Taylor method that is at least as "
        f"precise as {DOPRI8} at {_TOLERANCE:g}, in parts of its time",
        1.0,
        figures,
    )


def _best_to_dopri8(solves: list[SmoothSolve]) -> float | None:
    asked = (DOPRI8, _TOLERANCE)
    base = next((one for one in solves if one[1:3] == asked), None)
    if base is None or base.error is None:
        return None
    prefix = truncated_name(0)[:-1]
    times = [
        time
        for one in solves
        if one.method.startswith(prefix)
        and one.error is not None
        and one.error <= base.error
        and (time := seconds(one.run)) is not None
    ]
    return ratio(min(times, default=None), seconds(base.run))
