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
# # What encoding and decoding loses
#
# Integrated upwards, the ODE takes an image $x_0$ to its latent $x_T$; integrated downwards, it takes it back.
# Solved exactly it loses nothing; in $S$ steps it loses what the solver does. DDIM's paper measures that in its
# Table 2.
#
# Reconstruction alone is misleading. Write $\Phi_h$ for a solver's walk up and $\Psi_h$ for its walk down. What
# comes back is $\Psi_h(\Phi_h(x_0))$, and its leading errors may cancel though both walks are wrong; the identity,
# which encodes nothing, loses nothing. So three more figures are measured: how far the latent is from a tight
# reference, whether its second moment is one that the model knows, and what a *good* latent is decoded to.

# %%
# %matplotlib inline
import os
from pathlib import Path

from ddim_ode import load_model
from ddim_ode.analysis.cross_solver import DEFAULT_SOLVERS
from ddim_ode.analysis.cross_solver import plot as plot_pairs
from ddim_ode.analysis.cross_solver import run as run_pairs
from ddim_ode.analysis.pictures import CIFAR10_TEST, load_images
from ddim_ode.analysis.reconstruction import make_cases, run
from ddim_ode.analysis.reconstruction_plot import plot, table

# Images, and how coarse the reference is; a run for show takes fewer.
count = int(os.environ.get("DDIM_ODE_IMAGES", "4"))
stride = int(os.environ.get("DDIM_ODE_STRIDE", "4"))
out = Path(os.environ.get("DDIM_ODE_OUT", "demo/notebooks"))

model = load_model("default")
images, names = load_images(CIFAR10_TEST, model, count)

# %% [markdown]
# ## Error against network evaluations
#
# Euler is of first order: twice the steps, half the error, a quarter of the MSE. The dashed lines have the slopes
# that theory has for each order.

# %%
cases = make_cases(("euler", "heun", "dpmpp3m"), ("log-snr",), (), (10, 20, 50), ())
rows = run(model, images, names, cases, out / "reconstruction", stride=stride, references=out / "references")
plot(rows)

# %%
print(table(rows))

# %% [markdown]
# ## Encode with one, decode with another
#
# A latent that only its own solver understands is not the image's latent. On the diagonal, the round trip; off it,
# whether two solvers mean the same.

# %%
plot_pairs(run_pairs(model, images, names, DEFAULT_SOLVERS, "log-snr", 10, out / "cross_solver"))
