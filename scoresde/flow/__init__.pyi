from .field import ProbabilityFlowField as ProbabilityFlowField
from .ode import Solution as Solution
from .ode import Tableau as Tableau
from .ode import integrate as integrate
