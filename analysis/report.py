"""Run all analyses, and gather their figures, tables and settings in one HTML page that needs nothing else.

Every analysis writes into a folder of its own, and measures nothing again that is there: a run that was killed goes on,
and the page can be made anew at any time.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path

import click
from tqdm import tqdm

from analysis import ANALYSES
from analysis.reconstruction import FIXED_STEP
from ddim_ode.files import write_file
from ddim_ode.models import DEFAULT_MODEL

PAGE = "report.html"
MAX_TABLE_ROWS = 60
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; } pre { white-space: pre-wrap; background: #f5f5f5; padding: .7rem; font-size: .85rem; }
table { border-collapse: collapse; font-size: .8rem; } td, th { padding: .1rem .5rem; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } details { margin: .5rem 0; overflow-x: auto; }
"""


@dataclass(frozen=True)
class Section:
    """An analysis, a key of ``ANALYSES``, and its options for a run of minutes and for one of hours."""

    name: str
    quick: tuple[str, ...]
    full: tuple[str, ...] = ()

    def run(self, folder: Path, model: str, *, full: bool) -> None:
        """Run it as its command line would, into a folder of its name in ``folder``."""
        command: click.Command = import_module(f"analysis.{self.name}").main
        options = [*(self.full if full else self.quick), "--model", model, "--out", str(folder / self.name)]
        if any(parameter.name == "references" for parameter in command.params):
            options += ["--references", str(folder / "references")]
        command.main(args=options, standalone_mode=False)


def _each(option: str, *values: float | str) -> tuple[str, ...]:
    """An option that may be given more than once, with all of ``values``."""
    return tuple(text for value in values for text in (option, str(value)))


_FEW = ("--count", "4")
_COARSE = (*_FEW, "--stride", "4")
_SOLVERS = _each("--solver", "euler", "heun", "reab2", "dpmpp3m")

# In the order of the page. Few images and short lists make a quick run; a full one is mostly what each does by itself.
SECTIONS: tuple[Section, ...] = (
    Section(
        "reconstruction",
        (*_COARSE, *_SOLVERS, *_each("--grid", "log-snr"), *_each("--nfe", 10, 20, 50)),
        (*_each("--solver", *FIXED_STEP), *_each("--grid", "log-snr"), *_each("--nfe", 10, 20, 50)),
    ),
    Section("cross_solver", (*_FEW, "--nfe", "10")),
    Section("decode_error", ("--count", "8", "--stride", "4", *_each("--nfe", 5, 10)), _each("--nfe", 5, 8, 10, 20)),
    Section("consistency", _FEW),
    Section(
        "sample_quality", ("--count", "48", *_each("--eta", "0", "0.5", "1", "sigma-hat"), *_each("--steps", 5, 10, 20))
    ),
    Section("euler_time", (*_COARSE, "--grid", "log-snr", *_each("--steps", 5, 10, 20, 50))),
    Section("work_precision", (*_COARSE, *_each("--tolerance", 1e-1, 1e-2, 1e-3), "--max-nfe", "200")),
    Section("curvature", (*_FEW, "--points", "20", "--reference-steps", "100")),
    Section("convergence", ("--count", "1")),
    Section("overhead", ("--repeats", "2")),
)


def page(folder: Path, sections: Sequence[Section], title: str) -> str:
    """HTML of what ``folder`` holds for the ``sections``: text, figures and tables, and no address of anything."""
    parts = [_section(folder / section.name, section.name) for section in sections if (folder / section.name).is_dir()]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{''.join(parts)}</body></html>\n"
    )


def _section(folder: Path, name: str) -> str:
    lead, _, rest = (import_module(f"analysis.{name}").__doc__ or "").partition("\n")
    parts = [f'<h2 id="{name}">{escape(lead)}</h2>\n']
    for path in sorted(folder.glob("*.png")):
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>\n')
    parts.append(_details("What is measured, and how", f"<pre>{escape(rest.strip())}</pre>"))
    parts += [_details(f"Table {path.name}", _table(path)) for path in sorted(folder.glob("*.csv"))]
    for path in sorted(folder.glob("*.json")):
        text = json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1)
        parts.append(_details(f"Settings {path.name}", f"<pre>{escape(text)}</pre>"))
    return "".join(parts)


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>\n"


def _table(path: Path) -> str:
    """The first rows of a CSV file; numbers with four digits."""
    with path.open(encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file)
    lines = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(_short(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    more = f"<p>and {len(rows) - MAX_TABLE_ROWS} more rows in the file</p>" if len(rows) > MAX_TABLE_ROWS else ""
    return f"<table>{''.join(lines[: MAX_TABLE_ROWS + 1])}</table>{more}"


def _short(cell: str) -> str:
    try:
        return cell if cell.lstrip("-").isdigit() else f"{float(cell):.4g}"
    except ValueError:
        return cell


@click.command(help=__doc__.split("\n")[0])
@click.option("--quick", "full", flag_value=False, type=bool, default=True, help="Minutes on two cores.  [default]")
@click.option("--full", "full", flag_value=True, type=bool, help="Hours: what the figures of the README come from.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model folder or Hub name.")
@click.option("--only", type=click.Choice(sorted(ANALYSES)), multiple=True, help="One or several instead of all.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo/report"), show_default=True)
def main(full: bool, model: str, only: tuple[str, ...], out: Path) -> None:
    sections = [section for section in SECTIONS if not only or section.name in only]
    with tqdm(sections, desc="analyses", disable=None) as bar:
        for section in bar:
            bar.set_postfix_str(section.name)
            section.run(out, model, full=full)
    title = f"ddim-ode: all analyses of model '{model}' ({'full' if full else 'quick'})"
    write_file(out / PAGE, page(out, SECTIONS, title).encode(), overwrite=True)
    click.echo(f"{len(sections)} analyses -> {out / PAGE}")
