from typing import Any, TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree, Real, Shaped


if TYPE_CHECKING:
    BoolScalarLike: TypeAlias = bool | Array | np.ndarray
    RealScalarLike: TypeAlias = int | float | Array | np.ndarray
else:
    BoolScalarLike = Bool[ArrayLike, ""]
    RealScalarLike = Real[ArrayLike, ""]

Args: TypeAlias = PyTree[Any]
Control: TypeAlias = PyTree[Shaped[ArrayLike, "?*control"], "Control"]
DenseInfo: TypeAlias = dict[str, PyTree[Array]]
VF: TypeAlias = PyTree[Shaped[ArrayLike, "?*vf"], "VF"]
Y: TypeAlias = PyTree[Shaped[ArrayLike, "?*y"], "Y"]
# Coefficients of a state: each leaf has the shape `(order + 1, *shape)`.
Coefficients: TypeAlias = PyTree[Inexact[Array, "coefficients ?*y"], "Y"]
