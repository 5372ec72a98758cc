"""Run all analyses, and gather their figures, tables and settings in one HTML page that needs nothing else.

Every analysis writes into a folder of its own, and measures nothing again that is there: a run that was killed goes on,
and the page can be made anew at any time. Where one fails, the page says why, and the others go on.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from html import escape
from importlib import import_module
from itertools import groupby
from pathlib import Path

import click
from tqdm import tqdm

from ddim_ode.files import write_file
from ddim_ode.work import load_json

from .options import FIXED_STEP, ModelChoice, errors_in_a_line, model_options

# What a command printed, beside its rows.
PRINTED = "table.md"
PAGE = "report.html"
MAX_TABLE_ROWS = 60
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; } pre { white-space: pre-wrap; background: #f5f5f5; padding: .7rem; font-size: .85rem; }
table { border-collapse: collapse; font-size: .8rem; display: block; overflow-x: auto; }
td, th { padding: .1rem .5rem; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } details { margin: .5rem 0; overflow-x: auto; }
.failure { color: #a00; }
"""


@dataclass(frozen=True)
class Section:
    """An analysis, one of ``analysis.ANALYSES``, and its options for a run of minutes and for one of hours.

    ``quick``   None where there is no such run.
    ``folder``  the name of its folder, where that is not the analysis's own.
    """

    name: str
    quick: tuple[str, ...] | None
    full: tuple[str, ...] = ()
    folder: str = ""

    @property
    def place(self) -> str:
        """The name of its folder, and of its place in the page."""
        return self.folder or self.name

    def run(self, folder: Path, model: ModelChoice, *, full: bool) -> None:
        """Run it as its command line would, into its folder in ``folder``, and keep there what it prints."""
        command: click.Command = import_module(f"{__package__}.{self.name}").main
        own = folder / self.place
        options = [*((self.full if full else self.quick) or ()), "--model", model.name]
        options += ["--device", model.device, "--out", str(own)]
        options += ["--class", model.label] if model.label is not None else []
        options += ["--guidance", str(model.guidance)] if model.guidance is not None else []
        if any(parameter.name == "references" for parameter in command.params):
            options += ["--references", str(folder / "references")]
        with redirect_stdout(io.StringIO()) as printed:
            command.main(args=options, prog_name=self.name, standalone_mode=False)
        click.echo(printed.getvalue())
        write_file(own / PRINTED, printed.getvalue().encode(), overwrite=True)


def _each(option: str, *values: float | str) -> tuple[str, ...]:
    """An option that may be given more than once, with all of ``values``."""
    return tuple(text for value in values for text in (option, str(value)))


_FEW = ("--count", "4")
_COARSE = (*_FEW, "--stride", "4")
_SOLVERS = _each("--solver", "euler", "heun", "reab2", "dpmpp3m")

# In the order of the page. Few images and short lists make a quick run; a full one is mostly what each does by itself.
SECTIONS: tuple[Section, ...] = (
    Section("comparison", ("--count", "2", "--few", "1", "--stride", "8"), ("--stride", "2")),
    Section(
        "reconstruction",
        (*_COARSE, *_SOLVERS, *_each("--grid", "log-snr"), *_each("--nfe", 10, 20, 50)),
        (*_each("--solver", *FIXED_STEP), *_each("--grid", "log-snr"), *_each("--nfe", 10, 20, 50)),
    ),
    Section(
        "reconstruction",
        None,
        (
            *_SOLVERS,
            *_each("--grid", "log-snr", "karras", "quad"),
            "--clean-end",
            "sigma-min",
            *_each("--nfe", 10, 20, 50),
        ),
        folder="reconstruction_grids",
    ),
    Section(
        "reconstruction",
        None,
        (*_each("--solver", "euler", "midpoint", "dpmpp3m"), "--grid", "log-snr", "--count", "8", "--stride", "2"),
        folder="reconstruction_1000",
    ),
    Section("cross_solver", (*_FEW, "--nfe", "10")),
    Section("decode_error", (*_COARSE, *_each("--nfe", 5, 10)), _each("--nfe", 5, 8, 10, 20)),
    Section("consistency", _FEW),
    Section(
        "sample_quality", ("--count", "48", *_each("--eta", "0", "0.5", "1", "sigma-hat"), *_each("--steps", 5, 10, 20))
    ),
    Section("euler_time", (*_COARSE, "--grid", "log-snr", *_each("--steps", 5, 10, 20, 50))),
    Section("work_precision", (*_COARSE, *_each("--tolerance", 1e-1, 1e-2, 1e-3), "--max-nfe", "200")),
    Section("curvature", (*_FEW, "--points", "20", "--reference-steps", "100")),
    Section("convergence", ("--count", "1"), ("--count", "1", *_each("--solver", *FIXED_STEP))),
    Section("overhead", ("--repeats", "2")),
)


def page(folder: Path, sections: Sequence[Section], title: str, failures: Mapping[str, str] | None = None) -> str:
    """HTML of what ``folder`` holds for the ``sections``: text, figures and tables, and no address of anything.

    ``failures``  why a section's run failed, by its place.
    """
    failed = failures or {}
    parts = [
        _section(folder / section.place, section, failed.get(section.place))
        for section in sections
        if (folder / section.place).is_dir() or section.place in failed
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{''.join(parts)}</body></html>\n"
    )


def _section(folder: Path, section: Section, failure: str | None) -> str:
    lead, _, rest = (import_module(f"{__package__}.{section.name}").__doc__ or "").partition("\n")
    aside = f" ({section.folder})" if section.folder else ""
    parts = [f'<h2 id="{section.place}">{escape(lead + aside)}</h2>\n']
    if failure:
        parts.append(f'<p class="failure">This run failed: {escape(failure)}</p>\n')
    for path in sorted(folder.glob("*.png")):
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>\n')
    if (folder / PRINTED).exists():
        parts.append(_printed((folder / PRINTED).read_text(encoding="utf-8")))
    parts.append(_details("What is measured, and how", f"<pre>{escape(rest.strip())}</pre>"))
    parts += [_details(f"Table {path.name}", _rows(path)) for path in sorted(folder.glob("*.csv"))]
    for path in sorted(folder.glob("*.json")):
        text = json.dumps(load_json(path), indent=1)
        parts.append(_details(f"Settings {path.name}", f"<pre>{escape(text)}</pre>"))
    return "".join(parts)


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>\n"


def _printed(text: str) -> str:
    """What a command printed: its tables, which are in Markdown, as tables of the page."""
    parts = []
    for tabular, lines in groupby(text.strip().splitlines(), key=lambda line: line.startswith("|")):
        if tabular:
            heads, _, *rows = ([cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines)
            parts.append(_table(heads, rows))
        elif said := "\n".join(lines).strip():
            parts.append(f"<pre>{escape(said)}</pre>")
    return "".join(parts) + "\n"


def _rows(path: Path) -> str:
    """The first rows of a CSV file; numbers with four digits."""
    with path.open(encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file)
    more = f"<p>and {len(rows) - MAX_TABLE_ROWS} more rows in the file</p>" if len(rows) > MAX_TABLE_ROWS else ""
    return _table(heads, [[_short(cell) for cell in row] for row in rows[:MAX_TABLE_ROWS]]) + more


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _short(cell: str) -> str:
    try:
        return cell if cell.lstrip("-").isdigit() else f"{float(cell):.4g}"
    except ValueError:
        return cell


@click.command(help=__doc__.split("\n")[0])
@click.option(
    "--full/--quick",
    default=False,
    show_default=True,
    help="Hours, with all images, all solvers and up to 1000 steps; or minutes, on two cores.",
)
@model_options
@click.option(
    "--only",
    type=click.Choice(sorted({section.name for section in SECTIONS})),
    multiple=True,
    help="One or several instead of all.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for all of it.  [default: demo/report, with --full demo/report-full]",
)
@click.pass_context
@errors_in_a_line()
def main(context: click.Context, full: bool, model: ModelChoice, only: tuple[str, ...], out: Path | None) -> None:
    folder = out or Path("demo/report-full" if full else "demo/report")
    chosen = [section for section in SECTIONS if not only or section.name in only]
    sections = [section for section in chosen if full or section.quick is not None]
    failures = run(sections, folder, model, full=full)
    title = f"ddim-ode: all analyses of model '{model.name}' ({'full' if full else 'quick'})"
    write_file(folder / PAGE, page(folder, SECTIONS, title, failures).encode(), overwrite=True)
    for place, failure in failures.items():
        click.echo(f"{place} failed: {failure}", err=True)
    click.echo(f"{len(sections) - len(failures)} analyses -> {folder / PAGE}")
    context.exit(1 if failures else 0)


def run(sections: Sequence[Section], folder: Path, model: ModelChoice, *, full: bool) -> dict[str, str]:
    """Run all ``sections`` into ``folder``, and say why some failed, in a line each, by their places."""
    failures = {}
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(sections, desc="analyses", disable=None) as bar:
        for section in bar:
            bar.set_postfix_str(section.place)
            try:
                section.run(folder, model, full=full)
            except click.Abort:  # the user's wish, though click makes it a RuntimeError
                raise
            except Exception as error:  # whatever an analysis may run into, hours after the first began
                kind = "" if isinstance(error, click.ClickException) else f"{type(error).__name__}: "
                failures[section.place] = kind + " ".join(str(error).split())
    return failures
