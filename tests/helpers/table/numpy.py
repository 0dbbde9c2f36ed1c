"""`jax.numpy`."""

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.scipy as jsp
import jax.scipy.cluster
from jax import lax

from .entry import (
    above_one,
    batch,
    batches,
    group,
    like,
    MASK,
    named,
    NODES,
    number_batch,
    number_pair,
    numbers,
    on,
    ONCE,
    OUTSIDE,
    pair,
    positive,
    power,
    ratio,
    real,
    signed_unit,
    system,
    TWICE,
    unit,
    variants,
    WEIGHTS,
)


ELEMENTWISE = group(
    named(
        jnp,
        """
        abs absolute arcsinh arctan asinh atan cbrt ceil cos cosh deg2rad degrees exp
        exp2 expm1 fabs floor frexp i0 modf nan_to_num negative positive rad2deg radians
        rint round sign sin sinc sinh square tanh trunc unwrap
        """,
    ),
    named(jnp, "log log10 log1p log2 reciprocal sqrt", positive),
    named(jnp, "acos arccos arcsin arctanh asin atanh", signed_unit),
    named(jnp, "acosh arccosh", above_one),
    named(jnp, "tan", signed_unit),
    named(
        jnp,
        """
        add arctan2 atan2 copysign fmax fmin heaviside hypot logaddexp logaddexp2
        maximum minimum multiply subtract
        """,
        pair,
    ),
    named(jnp, "divide divmod floor_divide fmod mod remainder true_divide", ratio),
    named(jnp, "float_power pow power", power),
    on(
        real,
        {
            "clip(x, a, b)": lambda x: jnp.clip(x, -jnp.abs(x[::-1]), x[0] ** 2),
            "divide(x, constant)": lambda x: x / like(x, NODES + 1),
            "fmod(constant, x)": lambda x: jnp.fmod(like(x, NODES), x),
            "ldexp": lambda x: jnp.ldexp(x, jnp.arange(4)),
            "power(2, x)": lambda x: 2.0**x,
            "power(x, constant)": lambda x: x ** like(x, NODES),
            "round(decimals)": lambda x: jnp.round(x, 1),
            "x * x, x / x, x - x": lambda x: (x * x, x / x, x - x, 0 * x),
        },
    ),
    on(positive, variants("power(x, {})", lambda n: lambda x: x**n, (-3, 0.7, 1, 7))),
)

REDUCTIONS = group(
    named(
        jnp,
        """
        amax amin average corrcoef cov cumprod cumsum max mean median min nancumprod
        nancumsum nanmax nanmean nanmedian nanmin nanprod nanstd nansum nanvar prod ptp
        std sum trace trapezoid var
        """,
        batch,
    ),
    named(jnp, "cumulative_prod cumulative_sum"),
    on(
        real,
        {
            "average(weights)": lambda x: jnp.average(x, weights=jnp.exp(x)),
            "count_nonzero": lambda x: x * jnp.count_nonzero(x > 0).astype(x.dtype),
            "cumulative_prod(include_initial)": lambda x: jnp.cumulative_prod(
                x, include_initial=True
            ),
            "max(initial, where)": lambda x: jnp.max(x * x, initial=0.1, where=MASK),
            "mean(where)": lambda x: jnp.mean(x, where=MASK),
            "nanquantile": lambda x: jnp.nanquantile(x, like(x, [0.3, 0.6])),
            "nansum of nans": lambda x: jnp.nansum(jnp.where(MASK, x * x, jnp.nan)),
            "percentile": lambda x: jnp.percentile(x, like(x, [10.0, 70.0])),
            "prod(where)": lambda x: jnp.prod(x, where=MASK),
            "quantile(q)": lambda x: jnp.quantile(jnp.sin(x), unit(x)),
            "std(ddof)": lambda x: jnp.std(x, ddof=1),
            **variants(
                "quantile(method={!r})",
                lambda method: lambda x: jnp.quantile(x, 0.3, method=method),
                ("linear", "lower", "higher", "midpoint", "nearest"),
            ),
            **variants(
                "ufunc.{}",
                lambda method: lambda x: getattr(jnp.add, method)(x * x),
                ("accumulate", "reduce"),
            ),
        },
    ),
)

ORDERING = group(
    named(jnp, "sort sort_complex", batch),
    named(jnp, "minmax", since=(0, 12)),
    on(batch, {"sort(axis)": lambda x: jnp.sort(x, axis=0)}),
    on(
        real,
        {
            "argmax, argmin": lambda x: x[jnp.argmax(x)] * x[jnp.argmin(x)],
            "argpartition": lambda x: x[jnp.argpartition(x, 1)],
            "argsort": lambda x: jnp.sin(x)[jnp.argsort(x)],
            "bincount(weights)": lambda x: jnp.bincount(jnp.arange(4) % 2, x, length=2),
            "digitize": lambda x: jnp.where(
                jnp.digitize(x, like(x, [0, 1])) > 0, x, x * x
            ),
            "histogram(weights)": lambda x: jnp.histogram(x, 3, (-3, 3), weights=x)[0],
            "lexsort": lambda x: x[jnp.lexsort((x, jnp.cos(x)))],
            "nonzero(size)": lambda x: x[jnp.nonzero(x > 0.2, size=2)],
            "partition": lambda x: jnp.partition(x, 2),
            "searchsorted": lambda x: x[jnp.searchsorted(jnp.sort(x), 0.2)],
            "sort(descending)": lambda x: jnp.sort(x, descending=True),
            "union1d(size)": lambda x: jnp.union1d(x, jnp.cos(x), size=6),
            "unique(size)": lambda x: jnp.unique(x, size=3),
        },
    ),
)


def _scatter(method, mode):
    def function(x):
        at = x.at[TWICE if mode == "promise_in_bounds" else OUTSIDE]
        return getattr(at, method)(jnp.cos(x[:3]), mode=mode)

    return function


INDEXING = group(
    on(
        real,
        {
            f"at[].{method}(mode={mode!r})": _scatter(method, mode)
            for method in ("set", "add", "subtract", "min", "max")
            for mode in ("promise_in_bounds", "clip", "drop")
            # JAX's own derivatives of these two are not finite.
            if (method, mode) not in (("min", "clip"), ("max", "clip"))
        },
    ),
    on(
        real,
        {
            "at[].multiply": lambda x: x.at[ONCE].multiply(x[:3], unique_indices=True),
            "at[].divide": lambda x: x.at[ONCE].divide(
                positive(x[:3]), unique_indices=True
            ),
            "at[].power": lambda x: x.at[ONCE].power(2),
            "at[].get(mode='clip')": lambda x: x.at[OUTSIDE].get(mode="clip") ** 2,
            "at[].get(mode='fill')": lambda x: x.at[OUTSIDE].get(
                mode="fill", fill_value=2.0
            ),
            "at[].get(mode='promise_in_bounds')": lambda x: (
                x.at[TWICE].get(mode="promise_in_bounds") ** 2
            ),
            "at[].set(constant)": lambda x: x.at[TWICE].set(1.0),
            "at[].set(indices_are_sorted, unique_indices)": lambda x: x.at[:2].set(
                x[2:], indices_are_sorted=True, unique_indices=True
            ),
            "at[::2].add": lambda x: x.at[::2].add(jnp.sin(x[::2])),
            "at[argsort].set": lambda x: x.at[jnp.argsort(x)[:2]].set(x[2:] ** 2),
            "constant.at[].set": lambda x: like(x, WEIGHTS).at[1].set(x * x),
            "index(integer)": lambda x: x * x[2] * x[-1],
            "index(integers)": lambda x: jnp.sin(x)[TWICE],
            "index(booleans)": lambda x: x[MASK] ** 2,
            "index(slice)": lambda x: x[::-1] * x[1],
            "index(state-dependent)": lambda x: jnp.sin(x)[jnp.argsort(x)],
            "index(None, ...)": lambda x: x[None, ..., None] ** 2,
            "index(nothing)": lambda x: jnp.append(x[:0], jnp.sum(x[:0]) * x),
            "choose": lambda x: jnp.choose(TWICE, list(batch(x)[:, :3]), mode="clip"),
            "compress": lambda x: jnp.compress(x > 0, x, size=2),
            "delete": lambda x: jnp.delete(x, 1),
            "diag": lambda x: jnp.diag(x),
            "diagonal": lambda x: jnp.diagonal(jnp.outer(x, x)),
            "extract": lambda x: jnp.extract(x > 0, x, size=2, fill_value=0.3),
            "fill_diagonal": lambda x: jnp.fill_diagonal(
                jnp.outer(x, x), x, inplace=False
            ),
            "insert": lambda x: jnp.insert(x, 2, x[:1] ** 2),
            "ix_": lambda x: jnp.outer(x, x)[jnp.ix_(jnp.arange(2), jnp.arange(3))],
            "piecewise": lambda x: jnp.piecewise(
                x, [x < 0, x > 1], [jnp.sin, lambda x: x**3, 0.0]
            ),
            "place": lambda x: jnp.place(x, x > 0.2, jnp.sin(x[:2]), inplace=False),
            "put": lambda x: jnp.put(x, TWICE, x[:3] ** 2, inplace=False),
            "put_along_axis": lambda x: jnp.put_along_axis(
                x, jnp.array([2, 1]), x[:2] ** 2, axis=0, inplace=False
            ),
            "select": lambda x: jnp.select([x < 0, x > 1], [jnp.sin(x), x**3], 0.5),
            "take": lambda x: jnp.take(x, TWICE),
            "take(mode='fill', fill_value)": lambda x: jnp.take(
                x, OUTSIDE, mode="fill", fill_value=0.5
            ),
            **variants(
                "take(mode={!r})",
                lambda mode: lambda x: jnp.take(x * x, OUTSIDE, mode=mode),
                ("clip", "wrap"),
            ),
            "tril, triu": lambda x: (
                jnp.tril(jnp.outer(x, x)),
                jnp.triu(jnp.outer(x, x), 1),
            ),
            "ufunc.at": lambda x: jnp.add.at(x, TWICE, x[:3] ** 2, inplace=False),
            "where": lambda x: jnp.where(x > 0, jnp.exp(x), x**3),
            "where (guarded)": lambda x: jnp.where(
                x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0
            ),
        },
    ),
    on(
        batch,
        {
            "at[rows, columns].add": lambda x: x.at[TWICE, ONCE].add(x[:, 1] ** 2),
            "index(slice, integers)": lambda x: x[1:, TWICE] ** 2,
            "take_along_axis": lambda x: jnp.take_along_axis(
                x, jnp.argsort(x, axis=1), axis=1
            ),
        },
    ),
)

_pad_modes = (
    "constant edge linear_ramp maximum mean median minimum reflect symmetric wrap"
)
SHAPES = group(
    named(
        jnp,
        """
        array atleast_2d copy fliplr flipud hstack matrix_transpose ravel rot90 squeeze
        transpose unstack vstack
        """,
        batch,
    ),
    named(jnp, "append broadcast_arrays meshgrid", pair),
    on(
        real,
        {
            "array of scalars": lambda x: jnp.array([x[0], x[1] ** 2, 3.0]),
            "array_split": lambda x: jnp.array_split(x * x, 3),
            "astype": lambda x: x.astype(jnp.float64).astype(complex).real ** 2,
            "block": lambda x: jnp.block([[x, x * x], [jnp.sin(x), jnp.ones_like(x)]]),
            "broadcast_to": lambda x: jnp.broadcast_to(x * x, (3, 4)),
            "column_stack": lambda x: jnp.column_stack([x, x * x]),
            "concatenate": lambda x: jnp.concatenate([jnp.sin(x), jnp.ones_like(x)]),
            "dstack": lambda x: jnp.dstack([x, x * x]),
            "expand_dims": lambda x: jnp.expand_dims(x * x, 1),
            "flip": lambda x: jnp.flip(x * x),
            "linspace": lambda x: jnp.linspace(x, x**2, 3),
            "logspace": lambda x: jnp.logspace(x / 9, jnp.sin(x), 3),
            "pad(constant_values)": lambda x: jnp.pad(x, 1, constant_values=x[0] ** 2),
            "pad(function)": lambda x: jnp.pad(
                x, 1, lambda row, width, axis, options: row.at[0].set(row[2] ** 2)
            ),
            **variants(
                "pad(mode={!r})",
                lambda mode: lambda x: jnp.pad(jnp.sin(x), (2, 3), mode=mode),
                _pad_modes.split(),
            ),
            "repeat": lambda x: jnp.repeat(x * x, 3),
            "repeat(repeats)": lambda x: jnp.repeat(x, NODES, total_repeat_length=6),
            "reshape": lambda x: jnp.reshape(x * x, (2, 2)),
            "reshape(order='F')": lambda x: jnp.reshape(x * x, (2, 2), order="F"),
            "resize": lambda x: jnp.resize(x * x, (6,)),
            "roll": lambda x: jnp.roll(x * x, 1),
            "roll(state-dependent)": lambda x: jnp.roll(x * x, jnp.argmax(x)),
            "split": lambda x: jnp.split(x * x, 2),
            "stack": lambda x: jnp.stack([x, x * x], axis=1),
            "tile": lambda x: jnp.tile(x * x, (2, 3)),
        },
    ),
    on(
        positive,
        {
            "geomspace": lambda x: jnp.geomspace(x[0], x[1], 3),
            "moveaxis": lambda x: jnp.moveaxis(jnp.outer(x, x), 0, 1),
            "swapaxes": lambda x: jnp.swapaxes(jnp.outer(x, x), 0, 1),
        },
    ),
)

PRODUCTS = group(
    named(
        jnp,
        "convolve correlate dot inner kron outer polyadd polymul polysub vdot vecdot",
        pair,
    ),
    named(jnp, "diff ediff1d gradient poly polyder polyint vander"),
    named(jnp, "matmul matvec", system),
    on(
        real,
        {
            "diff(n, prepend)": lambda x: jnp.diff(x * x, n=2, prepend=0.0),
            "einsum(diagonal)": lambda x: jnp.einsum("ii->i", jnp.outer(x, x)),
            "frompyfunc": lambda x: jnp.frompyfunc(jnp.multiply, 2, 1)(x, jnp.sin(x)),
            "gradient(spacing)": lambda x: jnp.gradient(x * x, 0.3),
            "interp": lambda x: jnp.interp(0.3, jnp.sort(x), jnp.sin(x)),
            "interp(constant nodes)": lambda x: jnp.interp(
                x, like(x, NODES), like(x, [1, 3, 2, 5])
            ),
            "interp(period)": lambda x: jnp.interp(
                x, like(x, NODES), jnp.sin(x), period=4.0
            ),
            "matmul(precision)": lambda x: jnp.matmul(
                like(x, WEIGHTS), x, precision=lax.Precision.HIGHEST
            ),
            "matmul(preferred_element_type)": lambda x: jnp.matmul(
                like(x, WEIGHTS), x, preferred_element_type=jnp.float64
            ),
            "polydiv": lambda x: jnp.polydiv(x, like(x, [1, 2])),
            "polyval": lambda x: jnp.polyval(jnp.sin(x), x),
            "polyval(unroll=1)": lambda x: jnp.polyval(like(x, NODES), x, unroll=1),
            "trapezoid(x)": lambda x: jnp.trapezoid(jnp.sin(x), x),
            "ufunc.outer": lambda x: jnp.multiply.outer(x, jnp.sin(x)),
            **variants(
                "convolve(mode={!r})",
                lambda mode: lambda x: jnp.convolve(x, jnp.sin(x[:3]), mode),
                ("same", "valid"),
            ),
        },
    ),
    on(
        real,
        {"polyfit": lambda x: jnp.polyfit(like(x, NODES), jnp.sin(x), 2)},
        order=3,
    ),
    on(
        batches,
        {
            "apply_along_axis": lambda x, y: jnp.apply_along_axis(jnp.cumsum, 0, x * y),
            "einsum(bilinear)": lambda x, y: jnp.einsum("ij,kj->ik", x, y),
            "einsum(trilinear)": lambda x, y: jnp.einsum("ij,ik,il->jkl", x, y, y),
            "matmul(batched)": lambda x, y: x[:, None, :] @ y[:, :, None],
            "tensordot(axes)": lambda x, y: jnp.tensordot(x, y, ((0, 1), (0, 1))),
            "vectorize": jnp.vectorize(
                lambda a, b: jnp.dot(a, b) * a, signature="(n),(n)->(n)"
            ),
        },
    ),
    on(
        system,
        {
            "cross": lambda a, b: jnp.cross(a[0], b),
            "dot(matrix, vector)": lambda a, b: jnp.dot(a, b),
            "vecmat": lambda a, b: jnp.vecmat(b, a),
        },
    ),
)

FOURIER = group(
    named(jnp.fft, "ihfft rfft rfft2 rfftn", batch),
    named(
        jnp.fft,
        """
        fft fft2 fftn fftshift hfft ifft ifft2 ifftn ifftshift irfft irfft2 irfftn
        """,
        number_batch,
    ),
    named(jsp.fft, "dct dctn idct idctn", batch),
    on(
        real,
        {
            "fft(n, norm)": lambda x: jnp.fft.fft(x, n=6, norm="ortho"),
            "irfft(rfft**2)": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) ** 2, 4),
        },
    ),
)

COMPLEX = group(
    named(
        jnp,
        """
        abs angle arccos arcsin arcsinh arctan arctanh conj cos cosh cumprod cumsum exp
        exp2 expm1 imag log log10 log1p log2 mean prod real reciprocal sin sinh sqrt
        square std sum tan tanh var
        """,
        numbers,
    ),
    # In earlier releases their derivatives are wrong.
    named(jnp, "arccosh sign", numbers, since=(0, 12)),
    named(jax.nn, "logsumexp sigmoid", numbers),
    named(jnp, "add divide dot logaddexp multiply outer power vdot", number_pair),
    named(lax, "rsqrt", numbers),
    on(
        numbers,
        {
            "angle(deg)": lambda z: jnp.angle(z, deg=True) / 90,
            "at[].add": lambda z: z.at[TWICE].add(z[:3] ** 2),
            "complex": lambda z: jnp.exp(lax.complex(z.real, z.real**2)),
            "matmul": lambda z: jnp.outer(z, z) @ jnp.conj(z),
            "power(z, 3)": lambda z: z**3,
            "scan": lambda z: lax.scan(lambda c, a: (jnp.sin(c * a), c), z[0], z),
            "where": lambda z: jnp.where(z.real > 0, z, z**2),
        },
    ),
)


# jax.scipy.
