# As solvers.pyi.
from analysis import ANALYSES as ANALYSES
from analysis import pictures as pictures
