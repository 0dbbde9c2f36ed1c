from .expand import Expansion as Expansion
from .operation import Operation as Operation
from .registry import register as register, Rule as Rule
from .rules import (  # The import registers the rules.
    calls as calls,
    control_flow as control_flow,
    elementwise as elementwise,
    kinks as kinks,
    powers as powers,
)
from .rules.bilinear import bilinear as bilinear, cauchy_product as cauchy_product
from .rules.linear import linear as linear
from .series import (
    constant as constant,
    Integral as Integral,
    polynomial as polynomial,
    Series as Series,
)
