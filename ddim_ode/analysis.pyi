# As solvers.pyi.
from analysis import ANALYSES as ANALYSES
from analysis import figures as figures
from analysis import pictures as pictures
from analysis import trace_plot as trace_plot
