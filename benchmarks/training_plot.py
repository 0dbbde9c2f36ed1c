"""Draws what remainder steps cost by their cadence, and steps by the devices."""

from pathlib import Path

from .training_records import Results


def draw(results: Results, path: Path) -> None:
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    cadence, devices = figure.subplots(1, 2)
    counts = [1, 2, 5, 10, 20, 50, 100, 200, 400]
    for loop in results.loops:
        label = f"{loop.field}, batch {loop.batch}"
        cadence.plot(counts, [loop.amortized(n, 1) for n in counts], "o-", label=label)
    cadence.axhline(1, color="black", linewidth=0.8)
    cadence.set(
        title="A remainder step after every n",
        xlabel="dynamics steps n",
        ylabel="in parts of these alone",
        xscale="log",
    )
    cadence.grid(alpha=0.3)
    cadence.legend()
    labels = [f"{s.devices} on {s.cores}" for s in results.scalings]
    devices.bar(labels, [1e3 * s.seconds for s in results.scalings])
    devices.set(
        title="A dynamics step", xlabel="devices, on cores", ylabel="milliseconds"
    )
    figure.savefig(path, dpi=150)
