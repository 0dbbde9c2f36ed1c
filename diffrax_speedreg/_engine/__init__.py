from . import calls as calls, control_flow as control_flow  # Their rules.
from .expand import Expansion as Expansion
from .kinds import (
    bilinear as bilinear,
    cauchy_product as cauchy_product,
    linear as linear,
)
from .operation import Operation as Operation
from .registry import register as register, Rule as Rule
from .series import Integral as Integral, polynomial as polynomial, Series as Series
