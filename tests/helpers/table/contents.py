"""The table."""

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.scipy as jsp
import jax.scipy.cluster
import numpy as np
from jax import lax
from jax.experimental import io_callback

from .control_flow import BRANCHES, IMPLICIT, LOOPS
from .entry import Entry, group, named, on, positive, real, square
from .lax import LAX, WINDOWS
from .linalg import LAX_LINALG, NUMPY_LINALG, SCIPY_LINALG
from .modules import LAYERS, RANDOM
from .nn import KINKS, NN
from .numpy import (
    COMPLEX,
    ELEMENTWISE,
    FOURIER,
    INDEXING,
    ORDERING,
    PRODUCTS,
    REDUCTIONS,
    SHAPES,
)
from .scipy import OTHER_SCIPY, SPECIAL, STATISTICS
from .solvers import DIFFRAX, LINEAX, OPTIMISTIX
from .transformations import TRANSFORMATIONS


TABLE: dict[str, dict[str, Entry]] = {
    "jax.nn": NN,
    "At kinks, ties and removable singularities": KINKS,
    "jax.numpy, elementwise": ELEMENTWISE,
    "jax.numpy, reductions": REDUCTIONS,
    "jax.numpy, order": ORDERING,
    "jax.numpy, indexing": INDEXING,
    "jax.numpy, shapes": SHAPES,
    "jax.numpy, products and polynomials": PRODUCTS,
    "jax.numpy.fft and jax.scipy.fft": FOURIER,
    "Complex numbers": COMPLEX,
    "jax.numpy.linalg": NUMPY_LINALG,
    "jax.scipy.special": SPECIAL,
    "jax.scipy.stats": STATISTICS,
    "jax.scipy.linalg": SCIPY_LINALG,
    "jax.scipy, jax.image, jax.ops and sparse matrices": OTHER_SCIPY,
    "jax.lax": LAX,
    "jax.lax.linalg": LAX_LINALG,
    "jax.lax, convolutions and windows": WINDOWS,
    "Loops": LOOPS,
    "Branches": BRANCHES,
    "Implicit functions": IMPLICIT,
    "jax.random": RANDOM,
    "equinox.nn": LAYERS,
    "Transformations": TRANSFORMATIONS,
    "diffrax.diffeqsolve and interpolations": DIFFRAX,
    "optimistix": OPTIMISTIX,
    "lineax.linear_solve": LINEAX,
}

# Functions for which `jax.jvp`, or `jax.jvp` of it, has no derivative.
UNDIFFERENTIABLE: dict[str, Entry] = group(
    named(jsp.linalg, "sqrtm schur", square),
    named(lax.linalg, "hessenberg", square),
    on(
        real,
        {
            "at[].apply": lambda x: x.at[1:3].apply(jnp.sin),
            "composite": lax.composite(jnp.sin, "test.sine"),
            "pure_callback": lambda x: jax.pure_callback(np.sin, x, x),
            "io_callback": lambda x: io_callback(np.sin, x, x),
            "pmax": jax.vmap(lambda x: lax.pmax(x, "i"), axis_name="i"),
        },
    ),
    on(
        positive,
        {
            "betainc(a)": lambda x: jsp.special.betainc(x, 2.0, 0.3),
            "gammainc(a)": lambda x: jsp.special.gammainc(x, 0.3),
            "polygamma(n)": lambda x: lax.polygamma(x, x),
            "zeta(s)": lambda x: lax.zeta(1 + x, x),
        },
    ),
)
