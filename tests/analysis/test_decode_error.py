"""The comparison with diffusers' schedulers: it drives them rightly, counts honestly, and goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ddim_ode.analysis.decode_error import OUR_GRIDS, OURS, DecodeErrorRow, competitors, main, table
from ddim_ode.analysis.rows import load_rows
from ddim_ode.analysis.schedulers import THEIRS
from ddim_ode.analysis.spread import spread
from ddim_ode.codec import decode, draw_latents
from ddim_ode.grids import make_grid
from ddim_ode.models import Model, load_model
from ddim_ode.solvers import SOLVERS

# diffusers hands torch tensors to numpy's old protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

COMPETITORS = len(OURS) * len(OUR_GRIDS) + sum(len(spacings) for _, _, spacings in THEIRS)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(str(tiny_model))


def test_diffusers_ddim_is_driven_as_a_pipeline_does(model: Model) -> None:
    """Its images are those of our Euler on the same timesteps, down to the state and table it keeps in float32."""
    x_T = draw_latents(2, (3, 8, 8), seed=1)
    (ddim,) = [competitor for competitor in competitors(model, x_T) if competitor.name == "DDIM"]
    images, clean_end, nfe = ddim.run(5)
    ours = decode(model.ode(), x_T, make_grid(model.schedule, "trailing", 5), SOLVERS["euler"])
    assert (clean_end, nfe) == ("zero", 5)
    torch.testing.assert_close(images, ours, rtol=0, atol=1e-4)


def test_rows_of_all_competitors_and_no_work_twice(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny_model), "--out", str(tmp_path), "--count", "2", "--stride", "200", "--nfe", "5"]
    options += ["--references", str(tmp_path / "references")]
    first = CliRunner().invoke(main, options)
    assert first.exit_code == 0, first.output
    rows = load_rows(DecodeErrorRow, tmp_path / "rows.csv")
    assert len(rows) == COMPETITORS
    assert all(row.nfe <= 5 for row in rows)
    written = (tmp_path / "rows.csv").stat().st_mtime_ns
    assert CliRunner().invoke(main, options).stdout == first.stdout
    assert (tmp_path / "rows.csv").stat().st_mtime_ns == written


def test_table_has_the_best_of_either_family_and_their_ratio() -> None:
    def row(family: str, name: str, rmse: float) -> DecodeErrorRow:
        return DecodeErrorRow(family, name, "karras", 10, 10, spread(torch.tensor([float(rmse)])))

    rows = [row("diffusers", "A", 0.4), row("diffusers", "B", 0.2), row("ddim-ode", "C", 0.1), row("ddim-ode", "D", 1)]
    assert "| 10 | B, karras | 0.2000 | C, karras | 0.1000 | 0.50 |" in table(rows)
