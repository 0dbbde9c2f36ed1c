"""The stiff linear system of the Taylor-Lagrange paper."""

import json
import math

import diffrax_speedreg as dsr
import jax.numpy as jnp
import jax.random as jr
import pytest
from experiments import midpoints


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

# Relative errors of one step, computed without this package from the definitions of the
# paper's reference implementation; to two digits, and for other samples.
_published = {
    (2, 0.001): 1.2e-11,
    (2, 0.01): 7.0e-8,
    (2, 0.1): 9.7e-5,
    (2, 0.3): 3.1e-3,
    (3, 0.005): 7.6e-12,
    (3, 0.05): 1.4e-7,
    (3, 0.3): 2.3e-4,
}
_y0 = midpoints.initial_states(jr.key(1))


def _elementwise_error(order, step, factors):
    solver = midpoints.solver_with(order, "elementwise", factors)
    return midpoints.relative_error(solver, step, _y0)


@pytest.mark.parametrize("order, step", _published)
def test_best_elementwise_midpoint(order, step):
    factors = midpoints.best_elementwise(order, step, _y0)
    error = _elementwise_error(order, step, factors)
    assert error == pytest.approx(_published[order, step], rel=0.05)


@pytest.mark.parametrize("step", (0.01, 0.3))
@pytest.mark.parametrize("order", (2, 3))
def test_midpoint_of_the_stiff_mode(order, step):
    """What is left is the slow mode's error, which has a closed form too."""
    midpoint, _ = midpoints.midpoints_of_modes(order, step)
    z = -step  # The slow mode's eigenvalue is -1.
    gamma = 1 + (1 + midpoint) * z / (order + 1)
    series = [z**k / math.factorial(k) for k in range(order + 1)]
    slow = sum(series[:-1]) + series[-1] * gamma
    expected = abs(slow - math.exp(z)) / (slow + math.exp(z))
    error = _elementwise_error(order, step, jnp.full(2, midpoint))
    assert error == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("step", (0.001, 0.01, 0.3))
@pytest.mark.parametrize("order", (2, 3))
def test_matrix_is_exact(order, step):
    factors = midpoints.of_modes(midpoints.midpoints_of_modes(order, step)).reshape(-1)
    solver = midpoints.solver_with(order, "matrix", factors)
    # Round-off, of numbers that grow with the powers of A h.
    largest = max(1.0, (1000 * step) ** (order + 1))
    assert midpoints.relative_error(solver, step, _y0) < 1e-16 * largest


def test_training_finds_the_midpoint():
    solver = midpoints.trained(2, 0.01, updates=400, seed=0)
    error = midpoints.relative_error(solver, 0.01, _y0)
    assert error == pytest.approx(_published[2, 0.01], rel=0.05)
    untrained = dsr.TaylorLagrangeSolver(2, dsr.ConstantCorrection(2))
    assert midpoints.relative_error(untrained, 0.01, _y0) > 0.9


def test_table_of_the_recorded_file(tmp_path):
    assert midpoints.table(tmp_path) is None
    row = midpoints.Row(2, 0.01, 0.99, 6.3e-8, 7e-8, 1.7e-14)
    record = json.dumps(dict(results=[row._asdict()]))
    (tmp_path / "midpoints.json").write_text(record)
    table = midpoints.table(tmp_path)
    assert table is not None
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert cells == ["2", "0.01", "0.99", "6.3e-08", "7e-08", "1.7e-14", ""]
