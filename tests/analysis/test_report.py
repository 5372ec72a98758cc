"""The report is one page with all in it; and every analysis is a command."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from ddim_ode.analysis import ANALYSES, report
from ddim_ode.analysis.report import PAGE, SECTIONS, Section, page
from ddim_ode.cli import main

OVERHEAD = Section("overhead", ("--solver", "euler", "--steps", "1", "--repeats", "1", "--batch-size", "1"))


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_is_a_command(name: str) -> None:
    module = import_module(f"ddim_ode.analysis.{name}")
    assert isinstance(module.main, click.Command)
    result = CliRunner().invoke(main, ["analyze", name.replace("_", "-"), "--help"])
    assert result.exit_code == 0
    assert "--model" in result.output
    assert "--out" in result.output


def test_they_are_listed_without_importing_them() -> None:
    output = CliRunner().invoke(main, ["analyze", "--help"]).output
    for name in ("all", *ANALYSES):
        assert f"\n  {name.replace('_', '-')} " in output


def test_unknown_analyses() -> None:
    result = CliRunner().invoke(main, ["analyze", "nonsense"])
    assert result.exit_code != 0
    assert "No such command 'nonsense'" in result.output


def test_the_page_holds_everything_and_names_no_address(tmp_path: Path) -> None:
    folder = tmp_path / "overhead"
    folder.mkdir()
    Image.new("RGB", (2, 2), "red").save(folder / "figure.png")
    (folder / "rows.csv").write_text("solver,error\neuler,0.123456\n<b>,7\n" + "x,1\n" * 100)
    (folder / "settings.json").write_text(json.dumps({"seed": 3}))
    (folder / "table.md").write_text("| solver | % |\n|---|---:|\n| heun | 0.5 |\n| <i> | |\n\nand a < b\n")
    html = page(tmp_path, [OVERHEAD], "A & B")
    assert "A &amp; B" in html
    assert html.count("data:image/png;base64,") == 1
    assert not re.search(r"https?:|src=\"(?!data:)|href=|<script", html)
    assert "<td>euler</td><td>0.1235</td>" in html
    assert "<td>&lt;b&gt;</td><td>7</td>" in html
    assert "and 42 more rows" in html
    assert "&quot;seed&quot;: 3" in html
    assert "<tr><th>solver</th><th>%</th></tr><tr><td>heun</td><td>0.5</td></tr>" in html
    assert "<tr><td>&lt;i&gt;</td><td></td></tr></table><pre>and a &lt; b</pre>" in html


def test_all_runs_each_and_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SECTIONS", (OVERHEAD,))
    options = ["analyze", "all", "--quick", "--model", str(tiny_model), "--out", str(tmp_path / "report")]
    for _ in range(2):
        result = CliRunner().invoke(main, options, catch_exceptions=False)
        assert result.exit_code == 0
        assert "1 analyses -> " in result.output
    assert 'id="overhead"' in (tmp_path / "report" / PAGE).read_text()


def test_a_new_folder_holds_what_was_printed(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SECTIONS", (OVERHEAD,))
    options = ["analyze", "all", "--model", str(tiny_model), "--only", "overhead", "--out", str(tmp_path / "a" / "new")]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0
    printed = (tmp_path / "a" / "new" / "overhead" / "table.md").read_text()
    assert "| euler | 1 |" in printed
    assert printed in result.stdout
    assert "<td>euler</td><td>1</td>" in (tmp_path / "a" / "new" / PAGE).read_text()


def test_where_one_fails_the_others_go_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grey or small models have no sample quality, and a wrong option is one of the analysis alone."""
    sections = (Section("sample_quality", ()), Section("curvature", ("--points", "<0>")), OVERHEAD)
    monkeypatch.setattr(report, "SECTIONS", sections)
    options = ["analyze", "all", "--model", str(tiny_model), "--out", str(tmp_path)]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 1
    assert "1 analyses -> " in result.output
    assert re.search(r"^sample_quality failed: .* 3 x 8 x 8, .* 3 x 32 x 32", result.stderr, flags=re.MULTILINE)
    html = (tmp_path / PAGE).read_text()
    assert "This run failed: model" in html
    assert "&#x27;&lt;0&gt;&#x27; is not a valid integer range" in html
    assert 'id="overhead"' in html


def test_an_interrupt_ends_all(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "SECTIONS", (OVERHEAD, OVERHEAD))
    monkeypatch.setattr("ddim_ode.analysis.overhead.measure", interrupted)
    result = CliRunner().invoke(main, ["analyze", "all", "--model", str(tiny_model), "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "Aborted!" in result.output
    assert not (tmp_path / PAGE).exists()


@pytest.mark.parametrize(
    ("mode", "runs", "folder"), [((), 1, "report"), (("--quick",), 1, "report"), (("--full",), 2, "report-full")]
)
def test_quick_and_full_have_a_folder_each(
    mode: tuple[str, ...], runs: int, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "SECTIONS", (OVERHEAD, Section("overhead", None, folder="long")))
    monkeypatch.setattr(Section, "run", lambda section, out, model, *, full: ran.append(out / section.place))
    assert CliRunner().invoke(main, ["analyze", "all", *mode], catch_exceptions=False).exit_code == 0
    assert ran == [Path("demo", folder, name) for name in ("overhead", "long")[:runs]]
    assert (tmp_path / "demo" / folder / PAGE).exists()


def test_every_analysis_has_a_section_in_either_run() -> None:
    alone = {"dataset_speed", "learning", "precision", "quality", "round_trips", "speed"}
    assert {section.name for section in SECTIONS if section.quick is not None} == set(ANALYSES) - alone
    places = [section.place for section in SECTIONS]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.place)
def test_options_of_sections_are_those_of_their_commands(section: Section) -> None:
    command = import_module(f"ddim_ode.analysis.{section.name}").main
    for options in (section.quick, section.full):
        command.make_context(section.name, list(options or ()))
