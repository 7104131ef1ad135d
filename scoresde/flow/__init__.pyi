from .field import ProbabilityFlowField as ProbabilityFlowField
from .ode import ODE_METHODS as ODE_METHODS
from .ode import integrate as integrate
from .problem import Solution as Solution
from .tableaux import Tableau as Tableau
