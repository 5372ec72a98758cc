# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Choosing a solver
#
# The registry lists every solver with its order, its cost and its source. Which is best for a model is a matter of
# measurement: a network is rough where sigma is large, and no analytic model tells how rough.

# %%
# %matplotlib inline
import os
from pathlib import Path

from ddim_ode import load_model
from ddim_ode.analysis.curvature import plot as plot_bend
from ddim_ode.analysis.curvature import run as measure_bend
from ddim_ode.analysis.pictures import CIFAR10_TEST, load_images
from ddim_ode.analysis.reconstruction import make_cases, run
from ddim_ode.analysis.reconstruction_plot import plot
from ddim_ode.solvers import SOLVERS

count = int(os.environ.get("DDIM_ODE_IMAGES", "4"))
stride = int(os.environ.get("DDIM_ODE_STRIDE", "4"))
out = Path(os.environ.get("DDIM_ODE_OUT", "demo/notebooks"))

model = load_model("default")
images, names = load_images(CIFAR10_TEST, model, count)
for name, solver in SOLVERS.items():
    print(f"{name:26} order {solver.order}, {solver.source}")

# %% [markdown]
# ## Where the trajectory bends
#
# Euler's local error is half the second derivative times the square of the step, in the variable that it steps in.
# Two charts are compared: $\bar x$ over $\sigma$, and the angle chart, $y = \bar x/\sqrt{\sigma_d^2+\sigma^2}$ over
# $u = \arctan(\sigma/\sigma_d)$, which takes out of the flow what Gaussian data of standard deviation $\sigma_d$ would
# do. Steps are of equal length in log sigma, as on the grid `log-snr`. A good grid has its nodes where a curve is high.

# %%
bends = measure_bend(model, images, names, points=12, reference_steps=60, folder=out / "curvature")
plot_bend(bends, model)

# %% [markdown]
# ## The same solver in two charts, and grids
#
# Adams-Bashforth's method of second order in $(\bar x, \sigma)$, in the angle chart with steps counted in log sigma
# (`reab2`), and DPM-Solver++ of third order.

# %%
cases = make_cases(("euler", "ab2", "reab2", "dpmpp3m"), ("log-snr", "karras"), ("sigma-min",), (10, 20), ())
rows = run(model, images, names, cases, out / "charts", stride=stride, references=out / "references")
plot(rows)

# %% [markdown]
# ## A solver for one model
#
# `cli.py calibrate` fits a solver's steps to the model at hand, judges it on images and latents that it has not
# seen, and writes down what is better; `--solver auto` uses that. Where there is no calibration it is `dpmpp3m` on
# `log-snr`.
