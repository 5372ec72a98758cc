# As solvers.pyi.
from cli import main as main
