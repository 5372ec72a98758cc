"""What README and documentation tell people to type works, and what they say was measured was."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from math import exp, log2
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from compvis import single_file
from data_sets import draw
from safetensors.torch import save_file
from tiny_pipelines import build

import ddim_ode
from ddim_ode.analysis.comparison import main as compare
from ddim_ode.analysis.comparison_plot import GOALS
from ddim_ode.analysis.learning import LearningRow
from ddim_ode.analysis.learning import table as learning_table
from ddim_ode.analysis.overhead import OverheadRow
from ddim_ode.analysis.overhead import main as measure_overhead
from ddim_ode.analysis.overhead import table as overhead_table
from ddim_ode.analysis.quality import DistanceRow, ErrorRow, error_table
from ddim_ode.analysis.quality import table as quality_table
from ddim_ode.analysis.recognition import ClassRow, class_table
from ddim_ode.analysis.reconstruction import main as reconstruct
from ddim_ode.analysis.rows import load_rows
from ddim_ode.cli import main
from ddim_ode.models import EMBEDDED, load_model
from ddim_ode.solvers import runge_kutta
from ddim_ode.work import load_json

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r"^```(\S*).*?\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (?:python cli\.py|ddim-ode) (.+)$", flags=re.MULTILINE)
# The first two kinds of blocks run here. Those called sh need other machines, hours or a package index; text is none.
LANGUAGES = {"console", "python", "sh", "text"}
# What takes long in earnest, or a model of somebody else's, is less here.
LESS = {"--init default": "--init my-model", "--minutes 60": "--steps 1 --batch-size 2 --cpu"}


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each block of a page but the directives of sphinx."""
    for language, text in BLOCK.findall(PAGES[page]):
        if not language.startswith("{"):
            assert language in LANGUAGES, f"a block of {page} is called '{language}'"
            yield language, text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A folder with what the pages speak of: pictures, and models that are small and untrained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("photo.jpg", "cat.jpg"):
        shutil.copy(ROOT / "examples" / "photo.jpg", name)
    for label in ("horse", "deer"):
        Path("pictures", label).mkdir(parents=True)
        for number in range(8):
            draw(Path("pictures", label, f"{number}.png"), number)
    shutil.make_archive("pictures", "zip", "pictures")
    shutil.copytree(tiny_model, "my-model")
    shutil.copy(tiny_model / "unet" / "config.json", "unet.json")
    return tmp_path


@pytest.fixture
def pipelines(folder: Path) -> None:
    """Small ones by the names of large ones, in folders and in one file."""
    pipeline = build("SD 1.5")
    for name in ("stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"):
        pipeline.save_pretrained(name)
    save_file(single_file(pipeline), "dreamshaper.safetensors")
    build("DiT").save_pretrained("facebook/DiT-XL-2-256")


def shortened(command: str) -> str:
    for long, short in LESS.items():
        command = command.replace(long, short)
    new = command.startswith("train") and "--init" not in command
    return f"{command} --unet unet.json" if new else command


def check_said(out: str) -> None:
    """A program says something; where that is evaluations and an MSE, it is of a good round trip."""
    assert out, "a program says nothing"
    for nfe, mse in re.findall(r"^(\d+) (\S+)$", out, re.MULTILINE):
        assert float(mse) < {"10": 1e-4, "40": 1e-5}[nfe]


@pytest.mark.usefixtures("pipelines")
@pytest.mark.parametrize("page", PAGES)
def test_what_is_to_be_typed_works(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands and programs of a page, one after the other in one folder."""
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"<{page}>", "exec"), {"__name__": page})
            check_said(capsys.readouterr().out)
        elif language == "console":
            assert all(map(COMMAND.match, text.splitlines()))
            for command in COMMAND.findall(text):
                done = CliRunner().invoke(main, shlex.split(shortened(command)))
                assert done.exit_code == 0, f"{command}\n{done.output}"


def test_every_command_is_shown() -> None:
    shown = {command.split()[0] for command in COMMAND.findall("\n".join(PAGES.values()))}
    assert shown == set(main.commands) - {"analyze", "page"}
    said = sum(len(re.findall(r"^print\(\w+\.nfe, ", text, re.MULTILINE)) for text in PAGES.values())
    assert said == 4


def test_every_public_name_is_in_the_reference() -> None:
    named = set(re.findall(r"^\.\. auto\w+:: ddim_ode\.(\w+)$", PAGES["api"], re.MULTILINE))
    assert named == set(ddim_ode.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Those to files of this project; sphinx looks after the names of sections."""
    home = ROOT if page == "README" else ROOT / "docs"
    links = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", PAGES[page])
    for link in links:
        assert link.startswith("https://") or (home / link).exists(), f"{page}: {link}"


@pytest.mark.parametrize(
    ("name", "command", "count"),
    [
        ("reconstruction", reconstruct, 5),
        ("comparison", compare, len(GOALS) + 1),
    ],
)
def test_tables_are_what_was_measured(name: str, command: click.Command, count: int, folder: Path) -> None:
    """The command finds its rows measured; what it prints of them is what the documentation says."""
    results = folder / "analysis" / "results"
    shutil.copytree(ROOT / "analysis" / "results", results)
    settings = results / name / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"torch": torch.__version__}))
    page = PAGES["measurements"]
    (options,) = re.findall(rf"^ddim-ode analyze {name} (.+)$", page.replace("\\\n", " "), flags=re.MULTILINE)
    printed = CliRunner().invoke(command, options.split(), catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    _, *body = [line for line in printed.stdout.splitlines() if line.startswith("| ")]
    assert len(body) == count
    assert all(line in page for line in body)
    if command is compare:
        some = re.findall(r"^\| (?:round trip|latent|decode).+(?= \|$)", PAGES["README"], re.MULTILINE)
        assert len(some) == 6
        assert all(any(line.startswith(row) for line in body) for row in some)


def test_the_model_that_ships_is_the_one_that_was_measured() -> None:
    folder = ROOT / "analysis" / "results" / "quality"
    errors, distances = load_rows(ErrorRow, folder / "errors.csv"), load_rows(DistanceRow, folder / "distances.csv")
    assert load_json(folder / "settings.json")["models"][EMBEDDED["default"].name] == load_model().fingerprint
    classes = load_rows(ClassRow, folder / "classes.csv")
    for table in (quality_table(distances), error_table(errors), class_table(classes)):
        assert table in PAGES["shipped-model"]


@pytest.mark.parametrize(("name", "words"), [("auto-5", "`auto` | 5"), ("ddim-50", "DDIM, `trailing` | 50")])
def test_samples_in_five_evaluations_are_what_was_measured(name: str, words: str) -> None:
    folder = ROOT / "analysis" / "results" / f"quality-{name}"
    floor, row = load_rows(DistanceRow, folder / "distances.csv")
    cells = f"{row.frechet:.3f} | {row.wasserstein:.4f} | {row.colour_shift:.3f} | {row.contrast:.3f}"
    assert f"| {words} | {cells} |" in PAGES["measurements"]
    assert f"is the floor, {floor.frechet:.3f}." in PAGES["measurements"]
    assert load_json(folder / "settings.json")["models"][EMBEDDED["default"].name] == load_model().fingerprint


def test_what_learning_takes_is_what_was_measured() -> None:
    folder = ROOT / "analysis" / "results" / "learning"
    assert learning_table(load_rows(LearningRow, folder / "rows.csv")) in PAGES["measurements"]
    assert load_json(folder / "settings.json")["fingerprint"] == load_model().fingerprint


@pytest.mark.parametrize("name", EMBEDDED)
def test_cards_are_of_the_weights_beside_them(name: str) -> None:
    assert load_model(name).fingerprint in (EMBEDDED[name] / "README.md").read_text(encoding="utf-8")


def test_the_overhead_is_measured_as_it_says(folder: Path) -> None:
    rows = load_rows(OverheadRow, ROOT / "analysis" / "results" / "overhead" / "rows.csv")
    solvers = "".join(f" --solver {solver}" for solver in dict.fromkeys(row.solver for row in rows))
    assert (
        f"`ddim-ode analyze overhead{solvers} --steps {rows[0].steps} --repeats {len(rows) // 3}`"
        in PAGES["measurements"]
    )
    printed = overhead_table(rows)
    medians = re.findall(r"^\| (\w+) \| \d+ \|[^|]+\| (\d\.\d+) ", printed, re.MULTILINE)
    assert len(medians) == 3
    assert all(re.search(rf"{beside} % for\s+`{solver}`", PAGES["measurements"]) for solver, beside in medians)
    quick = ["--solver", "euler", "--steps", "1", "--repeats", "1", "--batch-size", "1"]
    assert CliRunner().invoke(measure_overhead, quick, catch_exceptions=False).exit_code == 0


def test_the_solver_of_the_first_hour_is_of_its_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^    _runge_kutta\($.+?^    \),$", text, re.DOTALL | re.MULTILINE)
    solver = eval(textwrap.dedent(entry).removesuffix(","), vars(runge_kutta))
    errors = [
        float((solver(lambda t, x: -x, torch.ones(1, dtype=torch.float64), grid) - exp(-1)).abs())
        for grid in (torch.linspace(0, 1, steps + 1, dtype=torch.float64) for steps in (20, 40))
    ]
    assert log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.2)


def test_set_up_by_hand_is_what_make_does() -> None:
    makefile = (
        (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv").replace("$(PYTHON)", "python3")
    )
    by_hand = re.findall(r"^    (python3 -m venv|source|python -m pip) (.+)$", PAGES["README"], flags=re.MULTILINE)
    assert [command for command, _ in by_hand] == ["python3 -m venv", "source", "python -m pip"]
    for command, rest in by_hand:
        if command != "source":
            # Where the environment is active, its python is the one that make names.
            line = f"{command} {rest}".replace("python -m pip install -c", ".venv/bin/python -m pip install --quiet -c")
            assert line in makefile
    for target in re.findall(r"^    make (\w+)$", PAGES["README"], flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
