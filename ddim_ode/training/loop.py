"""The training loop.

All that is random in a step is drawn from the seed and the number of the step. A checkpoint therefore needs no state of
a random generator, and a run that was killed goes on as one that was not; nor does the result depend, but for rounding
and the dropout of networks that have it, on how many processes share the work. Devices, processes and mixed precision
are left to Hugging Face's accelerate.
"""

from __future__ import annotations

import hashlib
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import inf
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from ddim_ode.files import reason
from ddim_ode.models import Model
from ddim_ode.networks import ClassUNet, UNet
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import NoiseSchedule
from ddim_ode.training.checkpoint import Checkpoint, CheckpointError, check_new, remove_left_overs, save_checkpoint
from ddim_ode.training.data import TrainingImages
from ddim_ode.training.objective import denoising_loss, stratified_timesteps
from ddim_ode.training.settings import Settings
from ddim_ode.training.start import first_network
from ddim_ode.work import claimed

# So often is the loss beside the bar renewed, in steps; reading it makes a GPU wait.
_TELL_EVERY = 20

# What is done with a model and its losses so far at every save: pictures, a card, a folder for diffusers.
Publish = Callable[[Model, Checkpoint], None]


@dataclass(frozen=True)
class Hardware:
    """``cpu``: do not use an accelerator; ``compile``: with ``torch.compile``; ``processes``: refuse to run in another
    number of processes, if not None."""

    cpu: bool = False
    compile: bool = False
    processes: int | None = None

    def accelerator(self, *, bf16: bool = False) -> Accelerator:
        """accelerate's view of this process and the others; ``bf16``: in mixed precision.

        Raises:
            ValueError: if there are not ``processes`` of them.
        """
        if self.compile:
            # Of a check of versions inside diffusers' network, which is traced rightly.
            warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        accelerator = Accelerator(
            cpu=self.cpu,
            mixed_precision="bf16" if bf16 else "no",
            dynamo_backend="inductor" if self.compile else "no",
        )
        if self.processes not in (None, accelerator.num_processes):
            raise ValueError(
                f"{self.processes} processes are wanted, but accelerate runs {accelerator.num_processes}; "
                f"start with: torchrun --nproc_per_node {self.processes} -m ddim_ode train ..."
            )
        return accelerator

    def describe(self, accelerator: Accelerator) -> str:
        """What a run is trained with, in words."""
        on_gpu = accelerator.device.type == "cuda"
        kind = torch.cuda.get_device_name() if on_gpu else f"{accelerator.device.type} ({platform.machine()})"
        threads = "" if on_gpu else f" with {torch.get_num_threads()} thread(s) each"
        compiled = ", torch.compile" if self.compile else ""
        return f"{accelerator.num_processes} process(es){threads} on {kind}{compiled}"


class DivergedError(RuntimeError):
    """Loss or weights that are no longer finite numbers."""


def train(
    settings: Settings,
    data: TrainingImages,
    folder: Path,
    *,
    publish: Publish,
    hardware: Hardware,
    resume: Checkpoint | None = None,
    begin: Mapping[str, Tensor] | None = None,
    save_minutes: float = 10.0,
) -> None:
    """Train a network on ``data`` and leave checkpoints in ``folder``, made if need be, every ``save_minutes``.

    ``resume``   go on from there; ``settings`` may then differ from its in the length of the run and the licence.
    ``begin``    weights to begin a new run with, by their names; None for random ones.
    ``publish``  called after every checkpoint, by the main process.

    Raises:
        ValueError: if ``save_minutes`` is negative or not finite, or no batch fits into memory.
        WorkError: if another process is at work in ``folder``.
        CheckpointError: if this is a new run and ``folder`` is not empty, or the old one was trained on other data.
        DivergedError: if loss or weights are no longer finite; the last checkpoint stays.
    """
    if not 0 <= save_minutes < inf:
        raise ValueError(f"the minutes from save to save must be at least 0 and finite, but they are {save_minutes:g}")
    _check_memory(settings, data)
    accelerator = hardware.accelerator(bf16=settings.bf16)
    if accelerator.is_main_process and not resume:
        check_new(folder)
    with claimed(folder) if accelerator.is_main_process else nullcontext():
        machine = hardware.describe(accelerator)
        run = _Run(settings, data, accelerator, machine, begin)
        if resume:
            run.load(resume)
        elif accelerator.is_main_process:
            check_new(folder)
        if accelerator.is_main_process:
            remove_left_overs(folder)
            tqdm.write(f"training on {len(data.pixels)} images of '{data.name}' in {machine}")
        _advance(run, folder, publish, accelerator, resume, 60 * save_minutes)
        accelerator.wait_for_everyone()  # a process that leaves while another still works can make that one fail


def _check_memory(settings: Settings, data: TrainingImages) -> None:
    """Raise ValueError if the images, the noise and the output of one batch alone are more than this machine holds."""
    each = 3 * 4 * data.pixels[0].numel()
    most = psutil.virtual_memory().total // each
    if settings.batch_size > most:
        raise ValueError(f"a batch of {settings.batch_size} images does not fit into memory; take {most} at most")


def _advance(
    run: _Run,
    folder: Path,
    publish: Publish,
    accelerator: Accelerator,
    resume: Checkpoint | None,
    save_seconds: float,
) -> None:
    """Go on to the end of the ``run``."""
    settings, main = run.settings, accelerator.is_main_process
    clock = _Clock(settings, run.seconds, save_seconds, accelerator)
    done, save = clock.tick(run.step)
    if main and resume and done == 1:
        # Again, in case that the run was killed before, or has got another licence.
        finished = replace(resume, settings=settings)
        save_checkpoint(finished, folder)
        publish(run.averaged_model(folder.name), finished)
        tqdm.write("the run is finished; --steps or --minutes make it longer, at the full learning rate again")
    with tqdm(initial=run.images, unit="img", unit_scale=True, desc="train", disable=None if main else True) as bar:
        while done < 1:
            run.advance(done)
            done, save = clock.tick(run.step)
            bar.total = max(bar.n, round(run.images / done))
            bar.update(settings.batch_size)
            if not bar.disable and run.step % _TELL_EVERY == 0:
                bar.set_postfix_str(f"loss {run.own_loss():.4f}")
            if save:
                loss = run.recent_loss()
                if main:
                    checkpoint = run.checkpoint(clock.seconds)
                    save_checkpoint(checkpoint, folder)
                    publish(run.averaged_model(folder.name), checkpoint)
                    tqdm.write(f"step {run.step}, {run.images} images, {done:.1%} of the run: loss {loss:.4f}")


class _Clock:
    """Tells all processes the same time: how much of a run is done, and whether to save."""

    def __init__(self, settings: Settings, seconds: float, save_seconds: float, accelerator: Accelerator) -> None:
        self._settings, self._save_seconds, self._accelerator = settings, save_seconds, accelerator
        self._begin = time.monotonic() - seconds
        self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the run has taken, with the parts before it was resumed."""
        return time.monotonic() - self._begin

    def tick(self, step: int) -> tuple[float, bool]:
        """The part of the run that is done after ``step`` steps, from 0 to 1, and whether it is time to save."""
        done = self._settings.progress(step, self.seconds)
        save = done == 1 or time.monotonic() - self._saved > self._save_seconds
        if self._accelerator.num_processes > 1:
            state = torch.tensor([done, save], dtype=torch.float64, device=self._accelerator.device)
            done, save = broadcast(state).tolist()
        if save:
            self._saved = time.monotonic()
        return done, bool(save)


class _Run:
    """The state of a run in one process."""

    def __init__(
        self,
        settings: Settings,
        data: TrainingImages,
        accelerator: Accelerator,
        machine: str,
        begin: Mapping[str, Tensor] | None,
    ) -> None:
        if settings.batch_size % accelerator.num_processes:
            raise ValueError(
                f"a batch of {settings.batch_size} cannot be shared evenly by {accelerator.num_processes} processes"
            )
        torch.manual_seed(settings.seed)
        self.settings, self.machine = settings, machine
        self.schedule: NoiseSchedule = settings.make_schedule()
        self.step, self.seconds = 0, 0.0
        self._accelerator = accelerator
        self._data = data.to(accelerator.device)
        self._losses: list[float] = []
        self._pending: list[Tensor] = []
        self._unet = first_network(settings, begin)
        self._unet.to(memory_format=torch.channels_last)
        weights = self._unet.parameters()
        optimizer = torch.optim.Adam(weights, lr=settings.learning_rate, betas=settings.betas, fused=True)
        self._network, self._optimizer = accelerator.prepare(self._unet, optimizer)
        self._average = EMAModel(
            self._unet.parameters(), decay=settings.ema, use_ema_warmup=True, power=settings.ema_power, foreach=True
        )
        self._permutation = lru_cache(maxsize=2)(partial(_permutation, settings.seed, len(data.pixels)))

    @property
    def images(self) -> int:
        """How many have been seen."""
        return self.step * self.settings.batch_size

    def advance(self, done: float) -> None:
        """One step of the optimizer; ``done`` of the run is over."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step, done)
        x_0, t, noise, labels = self._draw()
        errors = denoising_loss(
            lambda x, t: self._network(x, t, class_labels=labels, return_dict=False)[0],
            self.schedule,
            self.settings.prediction,
            x_0.contiguous(memory_format=torch.channels_last),
            t,
            noise,
            gamma=self.settings.gamma,
        )
        loss = errors.mean()
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self._network.parameters(), self.settings.max_gradient_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.step(self._unet.parameters())
        self._pending.append(loss.detach())
        self.step += 1

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """This process's share of the images, timesteps, noise and labels, if any, of the step that comes."""
        device, rank = self._accelerator.device, self._accelerator.process_index
        size, N = self.settings.batch_size, len(self._data.pixels)
        torch.manual_seed(_seed(self.settings.seed, "dropout", self.step) + rank)
        generator = torch.Generator(device).manual_seed(_seed(self.settings.seed, "batch", self.step))
        positions = torch.arange(self.images, self.images + size)
        epochs = positions // N
        indices = torch.cat([self._permutation(e)[positions[epochs == e] % N] for e in sorted(set(epochs.tolist()))])
        flips = torch.rand(size, generator=generator, device=device) < (0.5 if self.settings.mirrored else 0)
        t = stratified_timesteps(size, len(self.schedule), generator)
        noise = torch.randn((size, *self._data.pixels.shape[1:]), generator=generator, device=device)
        share = slice(
            rank * size // self._accelerator.num_processes, (rank + 1) * size // self._accelerator.num_processes
        )
        indices = indices.to(device)
        labels = self._labels(indices, generator)[share] if self.settings.classes else None
        return self._data.images(indices[share], flips[share]), t[share], noise[share], labels

    def _labels(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The classes of the images at ``indices``, ``(B,)``, some of them replaced by the label that means none."""
        dropped = torch.rand(len(indices), generator=generator, device=indices.device) < self.settings.label_dropout
        return self._data.labels[indices].masked_fill(dropped, len(self.settings.classes))

    def own_loss(self) -> float:
        """The mean loss of the last hundred steps or since the last save, over this process's share of the images."""
        return float(torch.stack(self._pending[-100:]).float().mean())

    def recent_loss(self) -> float:
        """The mean loss of the last hundred steps, over all processes, which have to ask for it together.

        Raises:
            DivergedError: if it was not finite in one of the steps since it was last asked for, or the weights are not.
        """
        if self._pending:
            losses = self._accelerator.reduce(torch.stack(self._pending).float(), reduction="mean")
            if not all(bool(values.isfinite().all()) for values in (losses, *self._unet.parameters())):
                raise DivergedError(
                    f"the loss or the weights are no longer finite, by step {self.step}; the last checkpoint, if there "
                    "is one, is kept; begin again with a smaller --learning-rate"
                )
            self._losses += losses.tolist()
            self._pending.clear()
        recent = self._losses[-100:]
        return sum(recent) / len(recent)

    def checkpoint(self, seconds: float) -> Checkpoint:
        """The state as it is after so many ``seconds``; ask for the ``recent_loss`` first."""
        return Checkpoint(
            settings=self.settings,
            data=self._data.name,
            digest=self._data.digest,
            machine=self.machine,
            step=self.step,
            seconds=seconds,
            unet=self._unet.state_dict(),
            average=self._average.state_dict(),
            optimizer=self._optimizer.state_dict(),
            losses=self._losses,
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Become what was saved.

        Raises:
            CheckpointError: if that was trained on other data, or is damaged.
        """
        if checkpoint.data != self._data.name:
            raise CheckpointError(f"the run was trained on '{checkpoint.data}', not '{self._data.name}'; name its data")
        if checkpoint.digest != self._data.digest:
            raise CheckpointError(
                f"the pictures in '{self._data.name}' are not those that the run was trained on; bring them back, or "
                "begin another run"
            )
        self.step, self.seconds = checkpoint.step, checkpoint.seconds
        if not checkpoint.machine.endswith(self.machine):
            self.machine = f"{checkpoint.machine}, then {self.machine}"
        try:
            self._unet.load_state_dict(checkpoint.unet)
            if checkpoint.average.keys() != self._average.state_dict().keys():
                raise ValueError("the moving average is none")
            self._average.load_state_dict(checkpoint.average)
            self._average.to(self._accelerator.device)
            self._optimizer.load_state_dict(checkpoint.optimizer)
            self._check_loaded()
        except Exception as error:  # whatever states of another network, or none at all, provoke
            what = reason(error)
            raise CheckpointError(f"the checkpoint is damaged, and its run cannot go on: {what:.300}") from error
        self._losses = list(checkpoint.losses)

    def _check_loaded(self) -> None:
        """Raise ValueError unless average and optimizer have for each weight finite numbers of its shape."""
        weights = list(self._unet.parameters())
        moments = [self._optimizer.state.get(weight, {}) for weight in weights]
        averages = self._average.shadow_params
        if len(averages) != len(weights):
            raise ValueError(f"there are {len(averages)} averages of {len(weights)} weights")
        for weight, average, found in zip(weights, averages, moments, strict=True):
            if self.step and found.keys() != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError("the state of the optimizer is not one of Adam")
            for part in (average, *(found[name] for name in ("exp_avg", "exp_avg_sq") if name in found)):
                if part.shape != weight.shape or not bool(part.isfinite().all()):
                    raise ValueError(
                        f"a weight has the shape {tuple(weight.shape)}, but its average or its moments are not finite "
                        f"or have {tuple(part.shape)}"
                    )

    def averaged_model(self, name: str) -> Model:
        """The network with the moving average of its weights, in a copy, ready for the ODE."""
        # A new one: accelerate has changed the forward of the network that is trained, and a copy would share that.
        unet = UNet2DModel.from_config(self.settings.unet)  # type: ignore[no-untyped-call]
        unet.to(self._accelerator.device).requires_grad_(False).eval()
        self._average.copy_to(unet.parameters())
        shape = self.settings.image_shape()
        classes = self.settings.classes
        network = ClassUNet(unet, shape[0], len(classes) + 1) if classes else UNet(unet, shape[0])
        return Model(
            name, network, VariancePreserving(self.schedule, self.settings.prediction), *shape, classes=classes
        )


def _permutation(seed: int, count: int, epoch: int) -> Tensor:
    """The order of ``count`` images in one passage through them, on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_seed(seed, "order", epoch)))


def _seed(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for everything that is drawn."""
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
