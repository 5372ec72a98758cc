"""The scripts of ``analysis`` as commands."""

from __future__ import annotations

from importlib import import_module

import click

from ddim_ode.analysis import ANALYSES


class Analyses(click.Group):
    """The scripts of ``analysis``, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the scripts, and 'all'."""
        return ["all", *(name.replace("_", "-") for name in sorted(ANALYSES))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of the script ``name``; of the report for 'all'."""
        if name not in self.list_commands(ctx):
            return None
        module = "report" if name == "all" else name.replace("-", "_")
        command: click.Command = import_module(f"ddim_ode.analysis.{module}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, which imports none of the scripts."""
        with formatter.section("Analyses"):
            lines = [(name.replace("_", "-"), text) for name, text in sorted(ANALYSES.items())]
            formatter.write_dl([("all", "One report of most of these."), *lines])


@click.command(cls=Analyses)
def analyze() -> None:
    """Measure and plot: what solvers and models are good for."""
