"""Engines of data sets: wherever processes run, and whichever die, every latent is there once, and the right one."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from data_sets import CountingThreads, Leaving, check_latents, counts, draw, rows
from killed_networks import slow_session
from PIL import Image

from ddim_ode import Request, Session, encode_dataset, load_dataset
from ddim_ode.session.dataset import ranks, ray_actors
from ddim_ode.session.dataset.crew import TRIES, Crew, Died, Lost, Said
from ddim_ode.session.dataset.encoder import Job
from ddim_ode.session.dataset.engines import ENGINES
from ddim_ode.session.dataset.formats import DEFAULT_FORMAT
from ddim_ode.session.dataset.local import Processes
from ddim_ode.session.dataset.run import Summary
from ddim_ode.session.dataset.serving import Failed, Ready, Refused
from ddim_ode.session.dataset.shards import Head, list_shards
from ddim_ode.session.dataset.sources import Entry
from ddim_ode.session.request import PlanError

ROOT = Path(__file__).parents[3]
REQUEST = Request(solver="heun", steps=2)
WITH_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for seed in range(5):
        draw(tmp_path / "pictures" / f"p{seed}.png", seed)
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of Ray on this machine, of one node with two CPUs; RAY_ADDRESS names it."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A node whose process is gone is soon taken for dead.
        quick = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 2}
        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False, "_system_config": quick},
        )
        patch.setenv("RAY_ADDRESS", started.address)
        yield started
        started.shutdown()


Run = Callable[[Path, Path, Path], None]


def run_local(pictures: Path, out: Path, model: Path) -> None:
    opener = partial(Session, model, device="cpu", batch_size=2)
    assert encode_dataset(pictures, out, opener, REQUEST, shard_size=1, workers=2).encoded == 5


def run_ray(pictures: Path, out: Path, model: Path) -> None:
    import ray

    opener = partial(Session, model, device="cpu", batch_size=2)
    done = encode_dataset(pictures, out, opener, REQUEST, shard_size=1, engine="ray", workers=2)
    assert done.encoded == 5
    assert not ray.is_initialized()


def run_torchrun(pictures: Path, out: Path, model: Path) -> None:
    command = f"-m torch.distributed.run --standalone --nproc_per_node 2 -m ddim_ode dataset {pictures} -o {out}"
    options = f"--model {model} --device cpu --batch-size 2 --solver heun --steps 2 --shard-size 1 --engine torchrun"
    run = subprocess.run(
        [sys.executable, *command.split(), *options.split()], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(f"5 pictures -> {out} (5 encoded") == run.stdout.count("\n") == 1


# The way to run each, on five pictures with two workers.
RUNS: dict[str, Run] = {"local": run_local, "ray": run_ray, "torchrun": run_torchrun}


@pytest.mark.parametrize("engine", [pytest.param(name, marks=[WITH_RAY] * (name == "ray")) for name in ENGINES])
def test_each_latent_is_there_once_and_the_one_of_its_picture(
    engine: str, pictures: Path, tmp_path: Path, tiny_model: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "ray":
        request.getfixturevalue("cluster")
    RUNS[engine](pictures, tmp_path / "out", tiny_model)
    assert len(rows(tmp_path / "out")) == len(list_shards(tmp_path / "out")) == 5
    check_latents(tmp_path / "out", pictures, Session(tiny_model, device="cpu"), REQUEST)


@dataclass
class Killer:
    """Kills children of this process, chosen at random, whenever so many more shards are in ``folder``."""

    folder: Path
    every: int
    seed: int
    killed: list[int] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Killer:
        self._thread = threading.Thread(target=self._kill)
        self._thread.start()
        return self

    def _kill(self) -> None:
        chance = random.Random(self.seed)
        while not self._over.wait(0.01):
            if len(list_shards(self.folder)) >= self.every * (len(self.killed) + 1):
                workers = [child for child in psutil.Process().children() if _works(child)]
                if workers:
                    victim = chance.choice(sorted(workers, key=lambda child: child.pid))
                    victim.kill()
                    self.killed.append(victim.pid)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _works(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_two_thousand_pictures_while_workers_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests")
    for seed in range(2000):
        draw(tmp_path / "pictures" / f"{seed:04}.png", seed)
    opener = partial(Session, "killed_networks:make", device="cpu", batch_size=20)
    encode = partial(encode_dataset, tmp_path / "pictures", tmp_path / "out", opener, REQUEST, shard_size=20, workers=2)
    with Killer(tmp_path / "out", every=22, seed=0) as killer:
        begin = time.perf_counter()
        done = encode()
        took = time.perf_counter() - begin
    assert len(killer.killed) >= 3
    assert counts(done) == (2000, 2000, 0, 0, 0)
    found = load_dataset(tmp_path / "out")
    assert (
        len(found) == len(set(found.names)) == len(rows(tmp_path / "out")) == len(set(rows(tmp_path / "out"))) == 2000
    )
    session = opener()
    for name in random.Random(0).sample(found.names, 50):
        alone = session.encode(tmp_path / "pictures" / name, solver="heun", steps=2)
        torch.testing.assert_close(found[name].x_T, alone.x_T, rtol=1e-6, atol=1e-6)
    begin = time.perf_counter()
    assert counts(encode()) == (2000, 0, 2000, 0, 0)
    assert time.perf_counter() - begin < took / 3


def test_a_driver_that_is_killed_leaves_no_process_behind(pictures: Path, tmp_path: Path) -> None:
    """And the next run goes on where it was."""
    for seed in range(5, 40):
        draw(pictures / f"p{seed}.png", seed)
    seen, out = tmp_path / "seen", tmp_path / "out"
    seen.mkdir()
    program = (
        "from functools import partial; from pathlib import Path; from killed_networks import slow_session;"
        "from ddim_ode import Request, encode_dataset;"
        f"encode_dataset('{pictures}', '{out}', partial(slow_session, Path('{seen}')),"
        "Request(solver='heun', steps=2), shard_size=1, workers=2)"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    driver = psutil.Popen([sys.executable, "-c", program], env=paths)
    while driver.poll() is None and len(list_shards(out)) < 3:
        time.sleep(0.05)
    children = driver.children(recursive=True)
    driver.kill()
    driver.wait()
    before = len(list_shards(out))
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert (len(gone) >= 2, alive) == (True, [])
    assert 3 <= before < 35
    (seen / "go").touch()
    done = encode_dataset(pictures, out, partial(slow_session, seen), REQUEST, shard_size=1, workers=0)
    assert done.encoded + done.kept == 40
    assert done.kept >= before
    check_latents(out, pictures, slow_session(seen), REQUEST)


@WITH_RAY
def test_a_node_of_ray_that_is_killed(pictures: Path, tmp_path: Path, cluster: Any) -> None:
    """While it works: its shards are done by the others, though there is no room for another actor."""
    for seed in range(5, 40):
        draw(pictures / f"p{seed}.png", seed)
    seen, out = tmp_path / "seen", tmp_path / "out"
    seen.mkdir()
    node = cluster.add_node(num_cpus=1)
    raylet = str(node.all_processes["raylet"][0].process.pid)
    done = list[Summary]()

    def encode() -> None:
        opener = partial(slow_session, seen)
        done.append(encode_dataset(pictures, out, opener, REQUEST, shard_size=1, engine="ray", workers=3))

    run = threading.Thread(target=encode)
    run.start()
    while run.is_alive() and not ((seen / raylet).exists() and len(list_shards(out)) >= 3):
        time.sleep(0.05)
    before = len(list_shards(out))
    cluster.remove_node(node, allow_graceful=False)
    (seen / "go").touch()
    run.join()
    assert 3 <= before < 30
    assert counts(done[0]) == (40, 40, 0, 0, 0)
    assert len(rows(out)) == 40
    check_latents(out, pictures, slow_session(seen), REQUEST)


@WITH_RAY
@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_actors_is_tried_three_times(pictures: Path, tmp_path: Path) -> None:
    Image.new("RGB", (12, 10), "white").save(pictures / "white.png")
    opener = partial(Session, "killed_networks:make", device="cpu")
    done = encode_dataset(pictures, tmp_path / "out", opener, REQUEST, shard_size=1, engine="ray", workers=2)
    assert counts(done) == (6, 5, 0, 0, 1)
    assert str(done.reason).startswith("its process died under Ray (")
    assert str(done.reason).endswith("), 3 times")
    assert list(load_dataset(tmp_path / "out").failed) == ["white.png"]


@WITH_RAY
@pytest.mark.usefixtures("cluster")
def test_an_actor_says_what_is_wrong(pictures: Path, tmp_path: Path, tiny_model: Path) -> None:
    opener = partial(Session, tiny_model, device="cpu", max_nfe=1)
    with pytest.raises(ValueError, match=r"solver 'heun' takes .*network evaluations"):
        encode_dataset(pictures, tmp_path / "out", opener, REQUEST, engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "nowhere"}, "unknown engine 'nowhere'; choose one of: local, ray, torchrun"),
        ({"engine": "ray"}, r"engine 'ray' needs the package ray; install it with: pip install 'ddim-ode\[ray\]'"),
        ({"engine": "ray", "workers": 0}, "0 workers are this process itself, which is for engine 'local'"),
        ({"engine": "torchrun"}, "torchrun starts, but it did not start this one; begin the command with: torchrun"),
    ],
)
def test_engines_that_cannot_begin(
    options: dict[str, Any], words: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_actors, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=words):
        encode_dataset(pictures, tmp_path / "out", Session, REQUEST, **options)
    assert not (tmp_path / "out").exists()


def test_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    task = CountingThreads(Session, REQUEST, tmp_path, tmp_path, DEFAULT_FORMAT)
    threads = []
    for workers in (1, 2):
        with closing(Crew(Processes(task, range(workers)))) as crew:
            threads.append(int(crew.key()))
    assert threads[1] == max(1, threads[0] // 2)


def test_workers_end_by_themselves(tmp_path: Path) -> None:
    """A process that is killed instead leaves behind what compilers have started in it."""
    with closing(Crew(Processes(Leaving(Session, REQUEST, tmp_path, tmp_path, DEFAULT_FORMAT), [0]))) as crew:
        assert crew.key() == "0"
        assert not (tmp_path / "left").exists()
    assert (tmp_path / "left").exists()


@dataclass
class Scripted:
    """An engine of which ``says`` tells what worker number ``i`` says, at first (None) and to each shard."""

    size: int
    says: Callable[[int, Sequence[Job] | None], Said | None]
    started: int = 0
    _alive: set[int] = field(default_factory=set)
    _said: list[tuple[int, Said]] = field(default_factory=list)

    def may_start(self) -> bool:
        return len(self._alive) < self.size

    def start(self) -> int:
        self.started += 1
        self._alive.add(self.started)
        self._say(self.started, None)
        return self.started

    def send(self, worker: int, jobs: Sequence[Job]) -> None:
        self._say(worker, jobs)

    def _say(self, worker: int, jobs: Sequence[Job] | None) -> None:
        said = self.says(worker, jobs)
        if said is not None:
            self._said.append((worker, said))

    def hear(self) -> list[tuple[int, Said]]:
        assert self._said, "nobody would ever say anything"
        said = self._said.pop(0)
        if isinstance(said[1], Died):
            self._alive.remove(said[0])
        return [said]

    def close(self) -> None:
        self._alive.clear()


def shards(*names: str) -> Iterator[Sequence[Job]]:
    return iter([[Job(Entry(name), b"", name)] for name in names])


def head(jobs: Sequence[Job]) -> Head:
    return Head(jobs[0].identity, "key", (), ())


def test_the_next_shard_is_listed_while_workers_work() -> None:
    """So that one that is done waits for no files to be read."""
    listed = list[str]()

    def slowly(names: str) -> Iterator[Sequence[Job]]:
        for jobs in shards(*names):
            listed.append(jobs[0].identity)
            yield jobs

    ahead = list[int]()

    def says(worker: int, jobs: Sequence[Job] | None) -> Said:
        return Ready("key") if jobs is None else head(jobs)

    crew = Crew(Scripted(1, says))
    for done, _ in enumerate(crew.run(slowly("abcd")), 1):
        ahead.append(len(listed) - done)
    assert ahead == [1, 1, 1, 0]


def outcome(crew: Crew, names: str) -> list[str]:
    """The shards done, and those lost with the reason."""
    found = crew.run(shards(*names))
    return sorted(f"{one.jobs[0].identity}: {one.reason}" if isinstance(one, Lost) else one.name for one in found)


def test_shards_are_tried_again_and_given_up() -> None:
    tried = list[str]()

    def says(worker: int, jobs: Sequence[Job] | None) -> Said:
        if jobs is None:
            return Ready("key")
        tried.append(jobs[0].identity)
        if jobs[0].identity == "b":
            return Failed("no memory left")
        once = jobs[0].identity == "c" and tried.count("c") < TRIES
        return Died("of a fault") if once or jobs[0].identity == "d" else head(jobs)

    engine = Scripted(2, says)
    crew = Crew(engine)
    assert crew.key() == "key"
    expected = ["a", "b: no memory left, 3 times", "c", "d: its process died of a fault, 3 times", "e"]
    assert outcome(crew, "abcde") == expected
    assert sorted(tried) == sorted("abbbcccddde")


def test_a_worker_that_does_not_begin_holds_nobody_up() -> None:
    """As an actor for which a cluster has no room: a worker that is ready does what waited for it."""
    engine = Scripted(3, lambda worker, jobs: None if worker > 1 else Ready("key") if jobs is None else head(jobs))
    assert outcome(Crew(engine), "abcdef") == list("abcdef")
    assert engine.started == 3


def test_no_more_workers_are_started_than_there_are_shards() -> None:
    engine = Scripted(9, lambda worker, jobs: Ready("key") if jobs is None else head(jobs))
    assert outcome(Crew(engine), "ab") == ["a", "b"]
    assert engine.started == 2


def test_workers_that_never_begin_and_those_that_refuse_end_the_run() -> None:
    mute = Scripted(2, lambda worker, jobs: Died("at once"))
    with pytest.raises(RuntimeError, match="3 processes died at once before they had a model to use"):
        outcome(Crew(mute), "ab")
    assert mute.started <= 4
    late = Scripted(1, lambda worker, jobs: Ready("key") if jobs is None else Refused(PlanError("no room")))
    with pytest.raises(PlanError, match="no room"):
        outcome(Crew(late), "ab")


def test_workers_that_cannot_begin_do_not_end_the_work_of_one_that_can() -> None:
    """As on a node that is lost while they start; when the last one dies as well, others are tried again."""

    def says(worker: int, jobs: Sequence[Job] | None) -> Said:
        if worker in (2, 3, 4):
            return Died("at once")
        if worker == 1 and jobs is not None and jobs[0].identity == "e":
            return Died("too")
        return Ready("key") if jobs is None else head(jobs)

    engine = Scripted(2, says)
    assert outcome(Crew(engine), "abcdefg") == list("abcdefg")
    assert engine.started >= 5


def test_a_worker_with_another_model_gets_no_work() -> None:
    engine = Scripted(2, lambda worker, jobs: Ready(f"key {worker}") if jobs is None else head(jobs))
    with pytest.raises(ValueError, match="a worker has another model"):
        outcome(Crew(engine), "abcdef")


def test_a_stranger_who_says_nothing_holds_up_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    told = dict[str, str]()
    monkeypatch.setattr(ranks, "_store", lambda: SimpleNamespace(set=told.__setitem__))
    engine = ranks._Ranks(CountingThreads(Session, REQUEST, tmp_path, tmp_path, DEFAULT_FORMAT))
    monkeypatch.setattr(engine, "_own", SimpleNamespace(start=lambda: None, pipes=list, close=lambda: None))
    engine.start()
    port, secret = next(iter(told.values())).split()
    with socket.create_connection(("127.0.0.1", int(port))), closing(engine):
        rank = Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(secret))
        rank.send(Ready("key"))
        assert engine.hear() == []  # it is let in
        ((_, said),) = engine.hear()
        assert said == Ready("key")
        with pytest.raises(AuthenticationError):
            Client(("127.0.0.1", int(port)), authkey=b"wrong")
