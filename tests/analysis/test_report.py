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

from analysis import ANALYSES, report
from analysis.report import PAGE, SECTIONS, Section, page
from cli import main

OVERHEAD = Section("overhead", ("--solver", "euler", "--steps", "1", "--repeats", "1", "--batch-size", "1"))


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_is_a_command(name: str) -> None:
    module = import_module(f"analysis.{name}")
    assert isinstance(module.main, click.Command)
    assert {"model", "out"} <= {parameter.name for parameter in module.main.params} | {"model"}
    result = CliRunner().invoke(main, ["analyze", name.replace("_", "-"), "--help"])
    assert result.exit_code == 0
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
    html = page(tmp_path, [OVERHEAD], "A & B")
    assert "A &amp; B" in html
    assert html.count("data:image/png;base64,") == 1
    assert not re.search(r"https?:|src=\"(?!data:)|href=|<script", html)
    assert "<td>euler</td><td>0.1235</td>" in html
    assert "<td>&lt;b&gt;</td><td>7</td>" in html
    assert "and 42 more rows" in html
    assert "&quot;seed&quot;: 3" in html


def test_all_runs_each_and_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SECTIONS", (OVERHEAD,))
    options = ["analyze", "all", "--quick", "--model", str(tiny_model), "--out", str(tmp_path / "report")]
    for _ in range(2):
        result = CliRunner().invoke(main, options, catch_exceptions=False)
        assert result.exit_code == 0
        assert "1 analyses -> " in result.output
    assert 'id="overhead"' in (tmp_path / "report" / PAGE).read_text()


def test_sections_are_analyses() -> None:
    names = [section.name for section in SECTIONS]
    assert len(set(names)) == len(names)
    assert set(names) <= set(ANALYSES)
