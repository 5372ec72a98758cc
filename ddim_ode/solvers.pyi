# For type checkers, which do not see that the rooms of a clone are found beside the package; not in the wheel.
from solvers import *
from solvers import fixed as fixed
from solvers import learning as learning
from solvers import polishing as polishing
