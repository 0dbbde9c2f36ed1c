"""What the engine is meant to reach, and what was measured of it."""

from collections.abc import Callable, Iterable

from .contestants import OURS
from .records import Results, YARDSTICK
from .runs import build_seconds, ratio, Run, seconds
from .tables import Goal


NESTED, JET = "nested jvp", "jet"
_KINDS = ("forward", "gradient")


def goals(results: Results) -> list[Goal]:
    return [
        *_evaluations(results),
        *_nested(results),
        *_jet(results),
        *_compile(results),
        *_loops(results),
    ]


def in_evaluations(
    results: Results, kind: str, field: str, batch: int, order: int, contestant: str
) -> float | None:
    """Run time of the K-th derivative, in that of K evaluations of the field."""
    once = getattr(results.find(field, batch, order, YARDSTICK), kind)
    run = getattr(results.find(field, batch, order, contestant), kind)
    multiple = ratio(seconds(run), seconds(once))
    return None if multiple is None else multiple / order


def ours_to(
    results: Results,
    quantity: Callable[[Run | None], float | None],
    kind: str,
    field: str,
    batch: int,
    order: int,
    contestant: str,
) -> float | None:
    """This package's time or memory, in parts of a contestant's."""
    ours = getattr(results.find(field, batch, order), kind)
    theirs = getattr(results.find(field, batch, order, contestant), kind)
    return ratio(quantity(ours), quantity(theirs))


def _largest_batch(results: Results, field: str) -> int:
    return max(results.batches(field), default=0)


def _evaluations(results: Results) -> Iterable[Goal]:
    batch = _largest_batch(results, "tanh")
    for kind in _KINDS:
        yield Goal(
            f"{kind}: the K-th derivative of `tanh` at batch {batch} in the time of "
            f"1.25 K times the field's",
            1.25,
            {
                f"K={k}": in_evaluations(results, kind, "tanh", batch, k, OURS)
                for k in (2, 3, 4)
            },
        )


def _nested(results: Results) -> Iterable[Goal]:
    batch = _largest_batch(results, "tanh")

    def figures(kind: str, orders: Iterable[int]) -> dict[str, float | None]:
        return {
            f"K={k}": ours_to(results, seconds, kind, "tanh", batch, k, NESTED)
            for k in orders
        }

    # At K = 1 both are the field itself.
    orders = [k for k in results.orders("tanh", batch) if k > 1]
    for kind in _KINDS:
        reached = {k: v for k, v in figures(kind, orders).items() if v is not None}
        yield Goal(
            f"{kind}: on `tanh` at batch {batch} never slower than nested `jax.jvp`, "
            "at any K that this reaches",
            1.0,
            reached,
        )
    for order, limit in ((3, 0.7), (4, 0.5)):
        yield Goal(
            f"gradient: on `tanh` at batch {batch} at most {limit} of the time of "
            f"nested `jax.jvp` at K = {order}",
            limit,
            figures("gradient", [order]),
        )


def _jet(results: Results) -> Iterable[Goal]:
    batch = _largest_batch(results, "tanh")
    figure = ours_to(results, seconds, "gradient", "tanh", batch, 3, JET)
    yield Goal(
        f"gradient: on `tanh` at batch {batch} at most 0.3 of the time of `jet` "
        "at K = 3",
        0.3,
        {"K=3": figure},
    )


def _compile(results: Results) -> Iterable[Goal]:
    def figures(field: str, contestant: str) -> dict[str, float | None]:
        batch = _largest_batch(results, field)
        return {
            f"K={k}": ours_to(
                results, build_seconds, "gradient", field, batch, k, contestant
            )
            for k in (2, 3, 4)
        }

    yield Goal(
        "compile time of the gradient: at most 0.4 of `jet`'s on `tanh` "
        "(`jet` fails on `softplus`)",
        0.4,
        figures("tanh", JET),
    )
    for field in ("tanh", "softplus"):
        yield Goal(
            "compile time of the gradient: at most that of nested `jax.jvp` on "
            f"`{field}`",
            1.0,
            figures(field, NESTED),
        )


def _loops(results: Results) -> Iterable[Goal]:
    batch = _largest_batch(results, "scan")
    orders = results.orders("scan", batch)
    for kind in _KINDS:
        yield Goal(
            f"compile time, {kind}: that of a scan of 16 layers at most four times "
            "that of one layer",
            4.0,
            {f"K={k}": _scan_to_layer(results, kind, batch, k) for k in orders},
        )
    for field in ("scan", "while", "cond"):
        batch = _largest_batch(results, field)
        yield Goal(
            f"forward: cost of `{field}` polynomial in K: the time of at most "
            "2 K (K + 1) / 2 evaluations",
            2.0,
            {
                f"K={k}": _in_pairs(results, field, batch, k)
                for k in results.orders(field, batch)
            },
        )


def _scan_to_layer(results: Results, kind: str, batch: int, order: int) -> float | None:
    scan = getattr(results.find("scan", batch, order), kind)
    layer = getattr(results.find("layer", batch, order), kind)
    return ratio(build_seconds(scan), build_seconds(layer))


def _in_pairs(results: Results, field: str, batch: int, order: int) -> float | None:
    """As `in_evaluations`, in that of K (K + 1) / 2 of them."""
    figure = in_evaluations(results, "forward", field, batch, order, OURS)
    return None if figure is None else 2 * figure / (order + 1)
