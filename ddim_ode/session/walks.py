"""Walks: one integration of a batch, watched, with what it cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddim_ode.ancestral import Ancestral
from ddim_ode.codec import decode, decode_solution, encode_solution
from ddim_ode.grids import Grid
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.solvers import Cost, ExactInverse, Solution, Solver, SolverError
from ddim_ode.speed import products


@dataclass(frozen=True)
class Progress:
    """How far a walk is: ``nfe`` evaluations of ``total``, which is None where nobody knows; ``done`` at its end."""

    label: str
    nfe: int
    total: int | None
    done: bool = False


# What is told of each evaluation, and before the first and after the last one.
Listener = Callable[[Progress], object]


@dataclass(frozen=True, eq=False)
class Walk:
    """What a walk of a batch took.

    ``nfe``   network evaluations of the batch; ``seconds`` the wall time.
    ``cost``  what each member cost, if it has steps of its own.
    ``notes``  what the solver could not do as it should, as sentences.
    """

    solver: Solver
    grid: Grid
    nfe: int
    seconds: float
    cost: Cost | None = None
    notes: tuple[str, ...] = ()

    def nfe_of(self, i: int | None) -> int:
        """Network evaluations spent on the member number ``i``: its own, or those of the batch."""
        return self.nfe if self.cost is None or i is None else int(self.cost.evaluations[i])

    def warn(self) -> None:
        """Issue the notes as UserWarnings, for those who get no report."""
        for note in self.notes:
            warnings.warn(note, stacklevel=3)

    def report(self, i: int | None = None) -> str:
        """What was done and what it cost: the batch, and the member number ``i`` if it has steps of its own."""
        solver, grid = self.solver, self.grid
        steps = "adaptive steps" if solver.adaptive else f"{grid.steps} steps on {grid.name}"
        more = ""
        if isinstance(solver, ExactInverse):
            more = f", each step undone to {solver.tolerance:g} unless a warning says otherwise"
        if self.cost and i is not None:
            taken, refused = self.cost.accepted[i], self.cost.rejected[i]
            more = f", {self.nfe_of(i)} of its own in {taken} steps and {refused} rejected"
        return f"{solver.name}, {steps}, {self.nfe} NFE{more}, {self.seconds:.2f} s"


@dataclass(frozen=True, eq=False)
class Walker:
    """Walks of one ODE, each of which has its limit of evaluations to itself, and tells ``listener`` how far it is.

    ``tf32``  whether a GPU may leave out digits of products of float32.
    """

    ode: ProbabilityFlowODE
    listener: Listener | None = None
    tf32: bool = False

    def encode(self, x_0: Tensor, grid: Grid, solver: Solver, *, label: str = "encode") -> tuple[Solution, Walk]:
        """The solution from the images ``x_0``, ``(B, C, H, W)``, to their latents, and what it took.

        Errors are those of ``codec.encode``.
        """
        return self.watch(label, grid, solver, lambda: encode_solution(self.ode, x_0, grid, solver))

    def decode(
        self, x_T: Tensor, grid: Grid, solver: Solver, *, companion: Tensor | None = None, label: str = "decode"
    ) -> tuple[Solution, Walk]:
        """The solution from the latents ``x_T``, ``(B, C, H, W)``, and perhaps their companions, to images.

        Errors are those of ``codec.decode``.
        """
        return self.watch(label, grid, solver, lambda: decode_solution(self.ode, x_T, grid, solver, companion))

    def sample(
        self, x_T: Tensor, grid: Grid, solver: Solver, noise: Ancestral | None = None, *, label: str = "sample"
    ) -> tuple[Solution, Walk]:
        """As ``decode``; with ``noise`` that walks in the place of ``solver``."""
        if noise is None:
            return self.decode(x_T, grid, solver, label=label)
        return self.watch(label, grid, solver, lambda: self._with_noise(x_T, grid, noise))

    def _with_noise(self, x_T: Tensor, grid: Grid, ancestral: Ancestral) -> Solution:
        images = decode(self.ode, x_T, grid, ancestral)
        if not bool(images.isfinite().all()):
            raise SolverError("sampling with noise led to pixels that are not finite numbers; check the network")
        return Solution(images)

    def watch(self, label: str, grid: Grid, solver: Solver, integrate: Callable[[], Solution]) -> tuple[Solution, Walk]:
        """What ``integrate`` gives, by ``solver`` on ``grid``, and what it took."""
        self.ode.reset()
        total, begin = solver.nfe(grid.steps), time.perf_counter()
        self._tell(label, total)
        hook = self.ode.register_forward_hook(lambda *_: self._tell(label, total)) if self.listener else None
        try:
            with products(tf32=self.tf32):
                solution = integrate()
        finally:
            if hook:
                hook.remove()
            self._tell(label, total, done=True)
        return solution, Walk(solver, grid, self.ode.nfe, time.perf_counter() - begin, solution.cost, solution.notes)

    def _tell(self, label: str, total: int | None, *, done: bool = False) -> None:
        if self.listener:
            self.listener(Progress(label, self.ode.nfe, total, done))
