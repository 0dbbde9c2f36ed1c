"""Which speed R_K makes which solver cheap: the toy map for several K and weights.

For each K, trains fields of the toy map (see `experiments.toy`) with several weights of
R_K, all at once, and solves what was learned by methods of several orders. Writes a
file of results for each K, and a picture of errors against evaluations.

The speed is integrated by quadrature, and trainings make equal steps; what is reported
comes from adaptive solves, and of samples that were not trained on.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from . import command_line, records, report, toy
from .training import Loss, Recorder, train_adaptively


ORDERS = {f"R_{order}": order for order in (2, 3, 4, 5)}
SOLVERS = {
    "Heun": dfx.Heun(),
    "Bosh3": dfx.Bosh3(),
    "Dopri5": dfx.Dopri5(),
    "Dopri8": dfx.Dopri8(),
}
# In a solve for training, and of the quadrature.
STEPS, NODES = 12, 8
STEPS_PER_EPOCH, QUICK_STEPS = 100, 10
SAMPLES = 300
# By how much a model's error may exceed that of the one without a speed, if the model's
# evaluations are to be compared with that one's.
SLACK = 1.1
PUBLISHED = (
    "TayNODE reports that K should be the solver's order, and that a lower K does "
    "nearly as well (unverified). The solvers of its authors need many more steps for "
    "a polynomial once its degree is their order (derived, from their tableaus)."
)


class Ensemble(eqx.Module):
    """Fields of one structure, whose arrays are stacked."""

    fields: toy.Field

    def each(self, function: Any, *others: Array) -> Any:
        """Applied to every field, and the corresponding entries of the others."""
        return eqx.filter_vmap(function)(self.fields, *others)


class Member(NamedTuple):
    """What was measured of one field; its error is a root mean square."""

    weight: float
    error: float
    speed: float
    nfe: dict[str, float]


def weights(order: int, quick: bool) -> Float[np.ndarray, " members"]:
    """None, and powers of ten: the higher the derivative, the larger it is."""
    powers = 10.0 ** np.arange(-2 - order, 4 - order)
    return np.concatenate([[0.0], powers[-1:] if quick else powers])


def alike(key: Key[Array, ""], size: int) -> Ensemble:
    """The same field several times."""
    params, static = eqx.partition(toy.initial_field(key), eqx.is_inexact_array)
    params = jtu.tree_map(
        lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), params
    )
    return Ensemble(eqx.combine(params, static))


def solve_with_speed(
    field: toy.Field, z: Float[Array, " samples"], order: int
) -> tuple[Float[Array, " samples"], Float[Array, ""]]:
    """The final states, and the mean speed of the solutions."""
    term = dfx.ODETerm(lambda t, y, args: jax.vmap(lambda y: field(t, y, args))(y))
    quadrature = dsr.gauss_legendre(0.0, 1.0, NODES)
    solution = dfx.diffeqsolve(
        term,
        dfx.Dopri5(),
        0.0,
        1.0,
        1 / STEPS,
        z,
        saveat=quadrature.saveat(dfx.SaveAt(t1=True)),
        # Round-off may add a step.
        max_steps=STEPS + 1,
    )
    solution, nodes = quadrature.split(solution)
    speed = quadrature.integrate(dsr.Speed(order), term, nodes)
    return dsr.final_state(solution), speed


def loss_of(order: int, sweep: Float[Array, " members"]) -> Loss:
    """The sum over all members, which have no parameters in common."""

    def loss(
        ensemble: Ensemble, batch: Float[Array, " samples"], key: Key[Array, ""]
    ) -> Float[Array, ""]:
        del key

        def one(field: toy.Field, weight: Float[Array, ""]) -> Float[Array, ""]:
            z1, speed = solve_with_speed(field, batch, order)
            return jnp.mean((z1 - toy.target(batch)) ** 2) + weight * speed

        return jnp.sum(ensemble.each(one, sweep))

    return loss


def measure(
    ensemble: Ensemble,
    order: int,
    sweep: Float[np.ndarray, " members"],
    test: Float[Array, " samples"],
) -> list[Member]:
    @eqx.filter_jit
    def errors(ensemble: Ensemble) -> tuple[Array, Array]:
        def one(field: toy.Field) -> tuple[Array, Array]:
            z1 = toy.final_states(field, test)
            _, speed = solve_with_speed(field, test, order)
            return jnp.sqrt(jnp.mean((z1 - toy.target(test)) ** 2)), speed

        return ensemble.each(one)

    counts = {
        name: np.asarray(mean_nfe(ensemble, solver, test))
        for name, solver in SOLVERS.items()
    }
    error, speed = map(np.asarray, errors(ensemble))
    return [
        Member(
            float(weight),
            float(error[i]),
            float(speed[i]),
            {name: float(count[i]) for name, count in counts.items()},
        )
        for i, weight in enumerate(sweep)
    ]


@eqx.filter_jit
def mean_nfe(
    ensemble: Ensemble, solver: dfx.AbstractERK, test: Float[Array, " samples"]
) -> Float[Array, " members"]:
    def one(field: toy.Field) -> Int[Array, " samples"]:
        return toy.count(field, solver, test)

    return jnp.mean(ensemble.each(one), axis=1)


def run(method: str, options: argparse.Namespace) -> dict[str, Any]:
    order = ORDERS[method]
    model_key, key = jr.split(jr.key(options.seed))
    sweep = weights(order, options.quick)
    # A seed of their own, so that these are not among the samples trained on.
    test = jr.uniform(
        jr.fold_in(key, 2**31), (SAMPLES,), minval=-toy.WIDEST, maxval=toy.WIDEST
    )
    record = Recorder(
        method,
        1 if options.quick else options.epochs,
        QUICK_STEPS if options.quick else STEPS_PER_EPOCH,
        lambda ensemble: jnp.mean(mean_nfe(ensemble, SOLVERS["Dopri5"], test)),
        command_line.checkpoints(options, f"orders {method}"),
    )
    ensemble = train_adaptively(
        loss_of(order, jnp.asarray(sweep)),
        alike(model_key, len(sweep)),
        lambda step: toy.samples(step, options.seed),
        optax.adam(optax.cosine_decay_schedule(options.learning_rate, record.steps)),
        record,
        key=key,
    )
    with dsr.solving(record.steps):
        members = measure(ensemble, order, sweep, test)
    return dict(
        members=[member._asdict() for member in members],
        training_seconds=sum(record.seconds),
        nfe_by_epoch=record.nfe,
        loss_by_epoch=record.loss_by_epoch,
    )


def file_name(method: str) -> str:
    return f"{command_line.file_name(f'orders {method}')}.json"


def sweeps(folder: Path) -> dict[str, list[Member]]:
    """Those that have a file in the folder, and did not diverge."""
    found = {}
    for method in ORDERS:
        path = folder / file_name(method)
        if path.exists():
            record = json.loads(path.read_text())
            if "result" in record:
                found[method] = [Member(**m) for m in record["result"]["members"]]
    return found


def cheapest(members: list[Member], solver: str) -> Member:
    """The one of the fewest evaluations whose error is not much above plain's."""
    plain, *_ = members
    near = [member for member in members if member.error <= SLACK * plain.error]
    return min(near, key=lambda member: member.nfe[solver])


def table(folder: Path) -> str | None:
    """The cheapest members for each K and solver, and then all, in Markdown."""
    best = [["K", *(f"{name}: plain, R_K, ratio" for name in SOLVERS), "command"]]
    best[0].insert(-1, "training")
    rows = [["K", "weight", "error", "R_K", *SOLVERS]]
    for method in ORDERS:
        path = folder / file_name(method)
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        command = f"`{parser().command(record['options'], method)}`"
        if "failure" in record:
            best.append([method, record["failure"], *[""] * len(SOLVERS), command])
            continue
        members = [Member(**member) for member in record["result"]["members"]]
        ours = []
        for solver in SOLVERS:
            plain, least = members[0].nfe[solver], cheapest(members, solver).nfe[solver]
            ours.append(f"{plain:.1f}, {least:.1f}, {least / plain:.2f}")
        seconds = f"{record['result']['training_seconds']:.0f} s"
        best.append([method, *ours, seconds, command])
        for member in members:
            counts = [f"{member.nfe[solver]:.1f}" for solver in SOLVERS]
            figures = [f"{x:.3g}" for x in (member.weight, member.error, member.speed)]
            rows.append([method, *figures, *counts])
    if len(best) == 1:
        return None
    return (
        f"{report.table(best)}\n\nEvaluations at rtol = atol = {toy.TOLERANCE:g}, mean "
        f"over {SAMPLES} samples, each solved alone: of the model without a speed "
        "(weight 0), and of the one of the fewest evaluations among those whose error "
        f"is at most {SLACK:g} times that one's. {PUBLISHED}\n\nAll models; error: "
        "root mean square of z(1).\n\n"
        f"{report.table(rows)}\n\n![Errors against evaluations](../experiments/results/"
        "orders.png)"
    )


def draw(found: dict[str, list[Member]], path: Path) -> None:
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(SOLVERS), 3.4), layout="constrained")
    panels = figure.subplots(1, len(SOLVERS), sharey=True)
    for axes, (name, solver) in zip(panels, SOLVERS.items()):
        for method, members in found.items():
            plain, *others = members
            counts = [member.nfe[name] for member in others]
            axes.semilogy(counts, [m.error for m in others], ".-", label=method)
            axes.plot(plain.nfe[name], plain.error, "k*")
        axes.set(title=f"{name}, order {solver.order(None)}", xlabel="mean NFE")
    panels[0].set_ylabel("error; star: without a speed")
    panels[0].legend()
    figure.savefig(path, dpi=150)


def parser() -> command_line.Parser:
    made = command_line.Parser(
        "orders",
        __doc__,
        epochs=12,
        quick="a few steps, of two members",
        methods=list(ORDERS),
    )
    positive = command_line.positive
    help_ = "Adam's"
    made.add_argument("--learning-rate", type=positive(float), default=1e-2, help=help_)
    return made


def main() -> None:
    options = parser().options()
    jax.config.update("jax_enable_x64", True)
    for method in options.methods:
        outcome = command_line.attempt(lambda: run(method, options))
        kind = "failure" if isinstance(outcome, str) else "result"
        record = records.circumstances(options) | {kind: outcome}
        path = options.output / file_name(method)
        path.write_text(json.dumps(record, indent=1) + "\n")
    found = sweeps(options.output)
    if found:
        draw(found, options.output / "orders.png")
    print(f"\n{table(options.output)}")


if __name__ == "__main__":
    main()
