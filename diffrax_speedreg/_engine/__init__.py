from . import control_flow as control_flow  # Its rules.
from .expand import Expansion as Expansion
from .series import Integral as Integral, polynomial as polynomial
