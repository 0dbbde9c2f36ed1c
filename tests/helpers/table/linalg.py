"""Linear algebra."""

import functools as ft

import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax

from .entry import (
    complex_square,
    definite,
    group,
    hermitian,
    named,
    on,
    pair,
    positive,
    real,
    square,
    symmetric,
    system,
    tall,
    variants,
)


NUMPY_LINALG = group(
    named(jnp.linalg, "cholesky", definite, order=4),
    named(jnp.linalg, "cond eigvalsh pinv svdvals", square, order=3),
    named(jnp.linalg, "det inv qr slogdet trace", square, order=4),
    named(jnp.linalg, "matmul solve", system, order=4),
    named(jnp.linalg, "outer vecdot", pair),
    on(
        symmetric,
        {
            "eigh(values)": lambda a: jnp.linalg.eigh(a)[0],
            "eigh(vectors, but for their signs)": lambda a: jnp.linalg.eigh(a)[1] ** 2,
        },
        order=4,
    ),
    on(
        hermitian,
        {"eigh(complex)": lambda a: jnp.abs(jnp.linalg.eigh(a)[1]) ** 2},
        order=3,
    ),
    on(
        square,
        {
            "inv(batched)": lambda a: jnp.linalg.inv(jnp.stack([a, a.T])),
            "matrix_power(a, 5)": lambda a: jnp.linalg.matrix_power(a, 5),
            "matrix_power(a, -2)": lambda a: jnp.linalg.matrix_power(a, -2),
            "multi_dot": lambda a: jnp.linalg.multi_dot([a, jnp.sin(a), a[0]]),
            "solve(matrix)": lambda a: jnp.linalg.solve(a, a.T),
            "tensorinv": lambda a: jnp.linalg.tensorinv(a[:, :, None], ind=1),
            "tensorsolve": lambda a: jnp.linalg.tensorsolve(a, a[0]),
            **variants(
                "norm(ord={!r})",
                lambda ord: lambda a: jnp.linalg.norm(a, ord=ord),
                (None, "fro", "nuc", np.inf, -np.inf, 1, -1, 2, -2),
            ),
        },
        order=3,
    ),
    on(
        tall,
        {
            "qr(tall)": lambda a: jnp.linalg.qr(a),
            "lstsq": lambda a: jnp.linalg.lstsq(a, a[:, 0] ** 2)[0],
            "svd(vectors, but for their signs)": lambda a: [
                m**2 for m in jnp.linalg.svd(a, full_matrices=False)
            ],
            "svd(reconstruction)": lambda a: _reconstruct(
                *jnp.linalg.svd(a, full_matrices=False)
            ),
        },
        order=3,
    ),
    on(
        complex_square,
        {
            "det(complex)": lambda a: jnp.linalg.det(a),
            "inv(complex)": lambda a: jnp.linalg.inv(a),
        },
        order=3,
    ),
    on(
        real,
        variants(
            "vector_norm(ord={!r})",
            lambda ord: lambda x: jnp.linalg.vector_norm(x, ord=ord),
            (0, 1, 2, 3, -1, 1.5, np.inf, -np.inf),
        ),
    ),
)


def _reconstruct(u, s, v):
    return u @ jnp.diag(jnp.exp(s)) @ v


SCIPY_LINALG = group(
    named(jsp.linalg, "block_diag toeplitz", pair),
    named(jsp.linalg, "circulant companion", positive, since=(0, 10)),
    named(jsp.linalg, "det inv", square, order=4),
    named(jsp.linalg, "expm lu polar", square, order=3),
    named(jsp.linalg, "solve", system, order=4),
    on(
        definite,
        {
            "cho_solve": lambda a: jsp.linalg.cho_solve(jsp.linalg.cho_factor(a), a[0]),
            "cholesky(lower)": lambda a: jsp.linalg.cholesky(a, lower=True),
            "eigh(eigvals_only)": lambda a: jsp.linalg.eigh(a, eigvals_only=True),
            "expm_frechet": lambda a: jsp.linalg.expm_frechet(a / 9, jnp.sin(a)),
            "lu_solve": lambda a: jsp.linalg.lu_solve(jsp.linalg.lu_factor(a), a[0]),
            "qr(economic)": lambda a: jsp.linalg.qr(a[:, :2], mode="economic"),
            "svd(compute_uv=False)": lambda a: jsp.linalg.svd(a, compute_uv=False),
        },
        order=3,
    ),
    on(
        system,
        {
            f"solve_triangular(lower={lower}, trans={trans!r}{unit})": ft.partial(
                jsp.linalg.solve_triangular,
                lower=lower,
                trans=trans,
                unit_diagonal=bool(unit),
            )
            for lower in (False, True)
            for trans in "NT"
            for unit in ("", ", unit_diagonal=True")
        },
    ),
)

LAX_LINALG = group(
    named(lax.linalg, "cholesky", definite, order=4),
    on(
        square,
        {
            "eigh": lambda a: [m**2 for m in lax.linalg.eigh(a)],
            "lu": lambda a: lax.linalg.lu(a)[0],
            "svd": lambda a: lax.linalg.svd(a, compute_uv=False),
            "triangular_solve(unit_diagonal, batched)": lambda a: (
                lax.linalg.triangular_solve(
                    jnp.stack([a, a.T]), jnp.stack([a, a]), unit_diagonal=True
                )
            ),
        },
        order=4,
    ),
    on(
        tall,
        {
            "lu(tall)": lambda a: lax.linalg.lu(a)[0],
            "lu(wide)": lambda a: lax.linalg.lu(a.T)[0],
            "qr(tall)": lambda a: lax.linalg.qr(a, full_matrices=False),
        },
        order=3,
    ),
    on(square, {"qdwh": lambda a: lax.linalg.qdwh(a)[0]}, order=2),
    on(
        complex_square,
        {
            "triangular_solve(complex)": lambda a: lax.linalg.triangular_solve(
                a, jnp.sin(a), transpose_a=True, conjugate_a=True
            )
        },
    ),
    on(
        real,
        {
            "tridiagonal_solve": lambda x: lax.linalg.tridiagonal_solve(
                0.2 * x, 3 + x, 0.3 * x, jnp.sin(x)[:, None]
            )
        },
    ),
)


# jax.lax.
