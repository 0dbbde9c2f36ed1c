"""`jax.scipy`."""

import jax
import jax.ad_checkpoint
import jax.experimental.sparse as sparse
import jax.numpy as jnp
import jax.scipy as jsp
import jax.scipy.cluster

from .entry import (
    above_one,
    batch,
    batches,
    between,
    definite,
    group,
    like,
    named,
    NODES,
    numbers,
    on,
    pair,
    positive,
    positives,
    power,
    real,
    signed_unit,
    unit,
    variants,
)


SPECIAL = group(
    named(
        jsp.special,
        """
        erf erfc expit gammasgn i0 i0e i1 i1e log_ndtr log_softmax logsumexp ndtr
        softmax
        """,
    ),
    named(jsp.special, "digamma entr expi factorial gamma gammaln", positive),
    named(jsp.special, "spence", positive, order=4),
    named(jsp.special, "loggamma", positive, since=(0, 10)),
    # Before, nested `jax.jvp` of this one failed.
    named(jsp.special, "exp1", positive, since=(0, 12)),
    named(jsp.special, "sici", positive, since=(0, 10), order=4),
    named(jsp.special, "dawsn", since=(0, 10)),
    # By itself, JAX 0.12 can't differentiate it twice.
    on(real, {"erfcx": lambda x: jax.vmap(jsp.special.erfcx)(x)}, since=(0, 10)),
    named(jsp.special, "wofz", numbers, since=(0, 10)),
    named(jsp.special, "fresnel", order=3),
    named(jsp.special, "erfinv", signed_unit),
    named(jsp.special, "erfcinv", between(0.2, 1.8), since=(0, 12)),
    named(jsp.special, "logit", unit),
    named(jsp.special, "ndtri", unit, order=3),
    named(jsp.special, "owens_t", pair, order=4, since=(0, 10), strict=False),
    named(jsp.special, "boxcox boxcox1p", power, since=(0, 10)),
    named(jsp.special, "beta betaln kl_div rel_entr xlog1py xlogy", positives),
    named(jsp.special, "poch", positives, order=4),
    named(jsp.special, "comb", lambda x: (above_one(x), unit(x)), since=(0, 10)),
    on(
        positive,
        {
            "gammainc(1.7, x)": lambda x: jsp.special.gammainc(1.7, x),
            "gammaincc(1.7, x)": lambda x: jsp.special.gammaincc(1.7, x),
            "multigammaln(x, 3)": lambda x: jsp.special.multigammaln(x + 2, 3),
            "polygamma(2, x)": lambda x: jsp.special.polygamma(2, x),
        },
    ),
    on(
        positive,
        {"bessel_jn(v=3)": lambda x: jsp.special.bessel_jn(x, v=3, n_iter=20)},
        tolerance=100,
    ),
    on(positive, {"expn(2, x)": lambda x: jsp.special.expn(2, x)}, since=(0, 12)),
    on(unit, {"betainc(2, 0.7, x)": lambda x: jsp.special.betainc(2.0, 0.7, x)}),
    on(
        unit,
        {
            "hyp1f1(0.3, 1.7, x)": lambda x: jsp.special.hyp1f1(
                like(x, 0.3), like(x, 1.7), x[0]
            ),
            "zeta(2.3, x)": lambda x: jsp.special.zeta(2.3, x),
        },
        order=3,
        strict=False,
    ),
    on(
        between(0, 0.5),
        {"hyp2f1(0.3, 1.2, 1.7, x)": lambda x: jsp.special.hyp2f1(0.3, 1.2, 1.7, x)},
        order=2,
    ),
    on(
        real,
        {
            "sph_harm_y": lambda x: jsp.special.sph_harm_y(
                jnp.array([2]), jnp.array([1]), x[:1], x[1:2], n_max=2
            )
        },
        order=3,
        since=(0, 10),
        strict=False,
    ),
)


def _distribution(name, methods, domain=real, *parameters, since=()):
    def method_of(method):
        return lambda x: getattr(getattr(jsp.stats, name), method)(x, *parameters)

    functions = variants(f"{name}.{{}}", method_of, methods.split())
    return on(domain, functions, order=4, since=since)


def _of_counts(name, *parameters):
    """Makes an entry that varies with the parameter, since counts are integers."""
    counts = lambda p: like(p, [1, 2, 3, 4])
    return {
        f"{name}.logpmf": lambda p: getattr(jsp.stats, name).logpmf(
            counts(p), *parameters, p
        )
    }


STATISTICS = group(
    _distribution("beta", "cdf logpdf sf", unit, 1.3, 2.4),
    _distribution("cauchy", "cdf logpdf"),
    _distribution("cauchy", "isf ppf", unit),
    _distribution("chi2", "cdf logpdf logsf", positive, 3.0),
    _distribution("expon", "logcdf logpdf", positive),
    _distribution("gamma", "cdf logpdf", positive, 1.6),
    _distribution("gennorm", "cdf logpdf", positive, 1.4),
    _distribution("gumbel_l", "cdf logpdf", since=(0, 10)),
    _distribution("gumbel_r", "cdf logpdf", since=(0, 10)),
    _distribution("laplace", "cdf logpdf"),
    _distribution("logistic", "cdf logpdf sf"),
    _distribution("logistic", "isf ppf", unit),
    _distribution("norm", "cdf logcdf logpdf logsf pdf sf"),
    _distribution("norm", "ppf", between(0.2, 0.8)),
    _distribution("pareto", "logpdf", above_one, 2.2),
    _distribution("pareto", "cdf", above_one, 2.2, since=(0, 10)),
    _distribution("t", "logpdf pdf", real, 2.7),
    _distribution("truncnorm", "logcdf logpdf", signed_unit, -2.0, 3.0),
    _distribution("uniform", "cdf logpdf ppf", unit),
    _distribution("vonmises", "logpdf", real, 1.3),
    _distribution("wrapcauchy", "logpdf", positive, 0.4),
    on(
        unit,
        {
            "bernoulli.logpmf": lambda p: jsp.stats.bernoulli.logpmf(
                like(p, [0, 1, 1, 0]), p
            ),
            **_of_counts("binom", 5),
            **_of_counts("geom"),
            **_of_counts("nbinom", 5),
            **_of_counts("poisson"),
        },
        order=4,
    ),
    on(
        positive,
        {
            "dirichlet.logpdf": lambda x: jsp.stats.dirichlet.logpdf(
                jax.nn.softmax(x), x
            ),
            "multinomial.logpmf": lambda x: jsp.stats.multinomial.logpmf(
                jnp.arange(4), 6, jax.nn.softmax(x)
            ),
            "sem": lambda x: jsp.stats.sem(x),
            "t.logpdf(df)": lambda x: jsp.stats.t.logpdf(0.3, x),
        },
        order=4,
    ),
    on(
        real,
        {
            "gaussian_kde": lambda x: jsp.stats.gaussian_kde(x).logpdf(jnp.cos(x[:2])),
            "multivariate_normal.logpdf": lambda x: (
                jsp.stats.multivariate_normal.logpdf(x[:3], x[1:], definite(x))
            ),
        },
        order=3,
    ),
)

OTHER_SCIPY = group(
    named(jsp.signal, "convolve correlate fftconvolve", pair),
    named(jsp.signal, "convolve2d correlate2d", batches),
    named(jsp.integrate, "trapezoid", pair),
    on(
        real,
        {
            "signal.detrend": lambda x: jsp.signal.detrend(x * x),
            "signal.csd": lambda x: jsp.signal.csd(x, x**2, nperseg=4)[1],
            "signal.stft": lambda x: jsp.signal.stft(x, nperseg=2)[2],
            "signal.istft": lambda x: jsp.signal.istft(
                jnp.fft.rfft(batch(x)).T ** 2, nperseg=4
            )[1],
            "signal.welch": lambda x: jsp.signal.welch(x, nperseg=4)[1],
            "ndimage.map_coordinates": lambda x: jsp.ndimage.map_coordinates(
                batch(jnp.sin(x)), [unit(x), positive(x)], 1
            ),
            "interpolate.RegularGridInterpolator": lambda x: (
                jsp.interpolate.RegularGridInterpolator((like(x, NODES),), jnp.sin(x))(
                    positive(x)[:, None]
                )
            ),
            **variants(
                "image.resize(method={!r})",
                lambda method: lambda x: jax.image.resize(batch(x), (4, 5), method),
                ("linear", "nearest", "cubic"),
            ),
            "image.scale_and_translate": lambda x: jax.image.scale_and_translate(
                batch(x), (4, 5), (0, 1), 1 + unit(x[:2]), unit(x[2:]), "linear"
            ),
            **variants(
                "ops.segment_{}",
                lambda name: (
                    lambda x: getattr(jax.ops, f"segment_{name}")(
                        x * x, jnp.array([0, 1, 1, 0]), 2
                    )
                ),
                ("max", "min", "sum"),
            ),
            "sparse.BCOO": lambda x: (
                sparse.BCOO((x * x, jnp.tile(NODES[:, None], 2)), shape=(4, 4))
                @ jnp.sin(x)
            ),
            "sparse.BCSR": lambda x: (
                sparse.BCSR((x * x, jnp.asarray(NODES), jnp.arange(5)), shape=(4, 4))
                @ jnp.sin(x)
            ),
        },
        order=3,
    ),
    on(
        definite,
        variants(
            "sparse.linalg.{}",
            lambda name: (
                lambda a: getattr(jsp.sparse.linalg, name)(
                    a, a[0] ** 2, tol=1e-15, maxiter=9
                )[0]
            ),
            ("bicgstab", "cg", "gmres"),
        ),
        order=3,
        single=False,
    ),
)


# Linear algebra.
