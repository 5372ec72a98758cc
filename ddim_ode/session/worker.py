"""The work of a session: batches of pictures and latents go through the ODE, each member under its own condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddim_ode.ancestral import Ancestral
from ddim_ode.codec import to_device
from ddim_ode.conditions import UNCONDITIONAL, Asked
from ddim_ode.embeddings import same_embedding
from ddim_ode.grids import halved
from ddim_ode.images import pixel_mse
from ddim_ode.latents import Latent, LatentError
from ddim_ode.models import Model
from ddim_ode.session import check as checking
from ddim_ode.session.batches import MemberError, OnError, each
from ddim_ode.session.jobs import LatentJob, PictureJob
from ddim_ode.session.parts import Parts
from ddim_ode.session.plan import Plan
from ddim_ode.session.results import Decoded, Encoded, EncodedBatch, Picture, Reconstructed, Sample
from ddim_ode.session.walks import Listener, Walker
from ddim_ode.solvers import Solution, Solver, SolverError, finer


def plan_settings(model: Model, fingerprint: str, plan: Plan, solver: Solver, source: str) -> dict[str, object]:
    """What made a picture of ``source``, by ``solver`` of the ``plan``, to be written into its file.

    ``fingerprint``  that of the ``model``, which takes time to find: once for a batch.
    """
    return {
        "source": source,
        "model": model.name,
        "fingerprint": fingerprint,
        "solver": solver.settings,
        "grid": plan.grid.name,
        "clean_end": plan.grid.clean_end,
        "steps": None if solver.adaptive else plan.grid.steps,
        "sigma_T": plan.grid.sigma_T,
        "class": plan.condition.name,
        "guidance": plan.condition.guidance,
        **({"asked": dict(model.asked)} if model.asked else {}),
    }


@dataclass(frozen=True, eq=False)
class Worker:
    """What takes batches through the ODE of a ``model``, with its limit, and tells ``listener`` how far it is.

    ``tf32``  whether a GPU may leave out digits of products of float32.
    """

    model: Model
    max_nfe: int
    listener: Listener | None
    tf32: bool = False

    def walker(self, conditions: Sequence[Asked], *, times: int = 1) -> Walker:
        """Walks of batches of as many members as there are ``conditions``, of ``times`` the limit of evaluations."""
        asked = None if all(condition.terms == UNCONDITIONAL.terms for condition in conditions) else conditions
        return Walker(self.model.ode(max_nfe=times * self.max_nfe, conditions=asked), self.listener, self.tf32)

    def states(self, parts: Iterable[Tensor]) -> Tensor:
        """The ``parts``, each ``(1, C, H, W)``, as one batch on the device of the network."""
        return to_device(torch.cat(list(parts)), self.model.device)

    def pictures(self, states: Tensor) -> Tensor:
        """What ``states`` look like, both ``(B, C, H, W)``: pixels in [-1, 1], on the CPU."""
        return self.model.space.picture(states).cpu()

    def errors(self, x_0: Tensor, found: Tensor) -> Tensor:
        """MSE of what states look like, both ``(B, C, H, W)``; ``(B,)`` on the CPU, pixels in [0, 1]."""
        return pixel_mse(self.pictures(x_0), self.pictures(found))

    def _parts(self, x_0: Tensor, back: Tensor, pixels: Tensor, own: Tensor, decoded: Tensor) -> Sequence[Parts | None]:
        """Whose the errors of pictures are, where an autoencoder has a part in them; all are ``(B, C, H, W)``.

        ``own, decoded``  what the states ``x_0`` and ``back`` look like.
        """
        if self.model.autoencoder is None:
            return [None] * len(x_0)
        of_states = (back - x_0).square().flatten(1).mean(1)
        each = (of_states, pixel_mse(own, decoded), pixel_mse(pixels, own))
        return [Parts(*numbers) for numbers in zip(*(part.tolist() for part in each), strict=True)]

    def encode(self, jobs: Sequence[PictureJob], on_error: OnError | None) -> EncodedBatch:
        """The latents of pictures that are ``alike``; ``on_error`` is told of those that are none."""
        x_0, plan = self.states(job.state for job in jobs), jobs[0].plan
        conditions = [job.plan.condition for job in jobs]
        solution, walk = self.walker(conditions).encode(x_0, plan.grid, plan.solver)

        own = self.model.fingerprint, self.model.fingerprints

        def latent(member: int) -> Encoded:
            job = jobs[member]
            try:
                found = self._latent(job, solution, member, walk.nfe_of(member), own)
            except LatentError as error:
                raise MemberError(f"'{job.name}': {error}") from error
            return Encoded(job.index, member, found, job.plan, walk)

        def round_trip() -> Tensor:
            back, _ = self.walker(conditions).decode(solution.x, plan.grid, plan.back, companion=solution.companion)
            return self.errors(x_0, back.x)

        def check() -> checking.Check:
            return self._check(jobs, conditions, x_0, solution)

        latents = [encoded for _, encoded in each(range(len(jobs)), latent, on_error)]
        return EncodedBatch(latents, walk, check, round_trip)

    def _latent(
        self, job: PictureJob, solution: Solution, member: int, nfe: int, fingerprints: tuple[str, Mapping[str, str]]
    ) -> Latent:
        """``fingerprints``  of the model and of what is beside its network."""
        part = slice(member, member + 1)
        return Latent(
            x_T=solution.x[part].cpu(),
            grid=job.plan.grid,
            solver=job.plan.solver.settings,
            schedule=self.model.schedule,
            model=self.model.name,
            fingerprint=fingerprints[0],
            source=job.source,
            nfe=nfe,
            companion=None if solution.companion is None else solution.companion[part].cpu(),
            condition=job.plan.condition,
            family=self.model.process.family,
            asked=self.model.asked,
            embedding=self.model.embedding,
            fingerprints=fingerprints[1],
        )

    def _check(
        self, jobs: Sequence[PictureJob], conditions: Sequence[Asked], x_0: Tensor, solution: Solution
    ) -> checking.Check:
        plan, pixels = jobs[0].plan, torch.cat([job.pixels for job in jobs])
        # Finer steps are twice as many, of an adaptive solver up to four times.
        walker = self.walker(conditions, times=4)
        fine_grid = plan.grid if plan.solver.adaptive else halved(plan.grid, self.model.schedule)
        fine = (finer(plan.solver), fine_grid)
        return checking.check(
            walker,
            x_0,
            solution.x,
            plan.grid,
            finer=fine,
            back=plan.back,
            compare=lambda back: self._compare(x_0, back, pixels),
            companion=solution.companion,
        )

    def _compare(self, x_0: Tensor, back: Tensor, pixels: Tensor) -> tuple[Tensor, Sequence[Parts | None]]:
        """The error of pictures, of what the ODE can help: against what their states decode to; and whose it is."""
        own, decoded = self.pictures(x_0), self.pictures(back)
        return pixel_mse(own, decoded), self._parts(x_0, back, pixels, own, decoded)

    def decode(self, jobs: Sequence[LatentJob]) -> list[Decoded]:
        """What latents that are ``alike`` decode to."""
        plan = jobs[0].plan
        x_T = self.states(job.latent.x_T for job in jobs)
        companions = [job.latent.companion for job in jobs if plan.exact and job.latent.companion is not None]
        companion = self.states(companions) if companions else None
        walker = self.walker([job.plan.condition for job in jobs])
        solution, walk = walker.decode(x_T, plan.grid, plan.back, companion=companion)
        images, fingerprint, found = self.pictures(solution.x), self.model.fingerprint, []
        for member, job in enumerate(jobs):
            own = self.having_told(job.plan, [job.latent])
            settings = plan_settings(self.model, fingerprint, own, own.back, job.latent.source.name)
            picture = Picture(images[member], settings)
            found.append(Decoded(job.index, member, picture, job.latent, own, walk))
        return found

    def having_told(self, plan: Plan, latents: Sequence[Latent]) -> Plan:
        """The ``plan``; it says if the network was told of another prompt than one of ``latents`` that left it out."""
        if not any(self._told_otherwise(latent) for latent in latents):
            return plan
        told = "told of another prompt than the one it was encoded as"
        return replace(plan, otherwise=(*plan.otherwise, told))

    def _told_otherwise(self, latent: Latent) -> bool:
        one, other = latent.embedding, self.model.embedding
        hidden = latent.asked is not None and latent.asked["prompt"] is None
        return hidden and one is not None and other is not None and not same_embedding(one, other)

    def reconstruct(self, jobs: Sequence[PictureJob]) -> list[Reconstructed]:
        """Pictures that are ``alike``, there and back."""
        x_0, plan = self.states(job.state for job in jobs), jobs[0].plan
        walker = self.walker([job.plan.condition for job in jobs])
        there, walk_there = walker.encode(x_0, plan.grid, plan.solver)
        back, walk_back = walker.decode(there.x, plan.grid, plan.back, companion=there.companion)
        pixels, decoded = torch.cat([job.pixels for job in jobs]), self.pictures(back.x)
        fingerprint = self.model.fingerprint
        parts = self._parts(x_0, back.x, pixels, self.pictures(x_0), decoded)
        errors = pixel_mse(pixels, decoded).tolist()
        alone: list[float | None] = [None] * len(jobs)
        if there.companion is not None:
            with suppress(SolverError):  # there is no way back without it
                without = self.pictures(walker.decode(there.x, plan.grid, plan.back)[0].x)
                alone = pixel_mse(pixels, without).tolist()
        return [
            Reconstructed(
                index=job.index,
                member=member,
                name=job.name,
                image=job.pixels[0],
                decoded=decoded[member],
                mse=errors[member],
                mse_alone=alone[member],
                parts=parts[member],
                plan=job.plan,
                there=walk_there,
                back=walk_back,
                settings=plan_settings(self.model, fingerprint, job.plan, plan.solver, job.name)
                | {"mse": errors[member]},
            )
            for member, job in enumerate(jobs)
        ]

    def sample(
        self,
        batches: Iterable[Sequence[tuple[Tensor, Plan]]],
        count: int,
        noise: Callable[[range], Ancestral] | None,
        settings: dict[str, object],
    ) -> Iterator[Sample]:
        """What ``batches`` of random latents decode to, ``count`` in all, each latent ``(C, H, W)`` with its plan.

        ``noise``     what walks in the place of the solver, for the members of a batch by their numbers.
        ``settings``  what made all of them.
        """
        first = 0
        for batch in batches:
            plan, members = batch[0][1], range(first, first + len(batch))
            walker = self.walker([own.condition for _, own in batch])
            x_T = self.states(x[None] for x, _ in batch)
            label = f"sample {first + 1}-{members.stop} of {count}"
            solution, walk = walker.sample(x_T, plan.grid, plan.solver, noise and noise(members), label=label)
            fingerprint = self.model.fingerprint
            for image, (_, own) in zip(self.pictures(solution.x), batch, strict=True):
                made = plan_settings(self.model, fingerprint, own, own.solver, "samples") | settings
                yield Sample(Picture(image, made), own, walk)
            first = members.stop
