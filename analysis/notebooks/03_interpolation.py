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
# # Between two images
#
# The latent says what is in the image: images with few steps and with many show the same, and images between two
# latents show something between. Latents are drawn from $N(0, I)$ in many dimensions, where almost all of the mass
# lies near the sphere of radius $\sqrt d$. A straight line between two of them leaves that sphere; the great circle
# does not (Shoemake's slerp, as in DDIM's Appendix D.5):
#
# $$x_T(w) = \frac{\sin((1-w)\theta)}{\sin\theta}\,x_T^{(0)} + \frac{\sin(w\theta)}{\sin\theta}\,x_T^{(1)},
#   \qquad \cos\theta = \frac{\langle x_T^{(0)}, x_T^{(1)}\rangle}{\|x_T^{(0)}\|\,\|x_T^{(1)}\|}.$$

# %%
# %matplotlib inline
import os

import torch

from ddim_ode import decode, encode, load_model, make_grid, span
from ddim_ode.analysis.lessons import plot_radii, radii, show
from ddim_ode.analysis.pictures import CIFAR10_TEST, load_images
from ddim_ode.codec import draw_latents
from ddim_ode.images import pixel_mse
from ddim_ode.solvers import get_solver

steps = int(os.environ.get("DDIM_ODE_STEPS", "20"))
model = load_model("default")
solver, grid = get_solver("dpmpp3m"), make_grid(model.schedule, "log-snr", steps)

# %% [markdown]
# ## Radius along the way

# %%
a, b = draw_latents(2, (model.channels, model.height, model.width), seed=1)
plot_radii(radii(a, b, 9))

# %% [markdown]
# ## Two random latents, and two pictures
#
# Both ends of a walk between pictures are the pictures themselves, but for what the solver loses.

# %%
show(decode(model.ode(), span(torch.stack([a, b]), 9), grid, solver), columns=9)

# %%
pictures, _ = load_images(CIFAR10_TEST, model, 2)
x_T = encode(model.ode(), pictures, grid, solver)
walk = decode(model.ode(), span(x_T, 9), grid, solver)
print("MSE at the ends, pixels in [0, 1]:", [f"{mse:.1e}" for mse in pixel_mse(pictures, walk[[0, -1]]).tolist()])
show(walk, columns=9)

# %% [markdown]
# ## Four corners

# %%
corners = draw_latents(4, (model.channels, model.height, model.width), seed=2)
show(decode(model.ode(), span(corners, 5), grid, solver), columns=5)
