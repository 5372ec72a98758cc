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
# # DDIM is Euler's method
#
# DDIM without noise steps from timestep $t$ to $s$ by (Song et al., [2010.02502](https://arxiv.org/abs/2010.02502),
# Eq. (12) with $\sigma_t = 0$)
#
# $$x_s = \sqrt{\bar\alpha_s}\,\frac{x_t - \sqrt{1-\bar\alpha_t}\,\epsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}
#   + \sqrt{1-\bar\alpha_s}\,\epsilon_\theta(x_t, t).$$
#
# Divide by $\sqrt{\bar\alpha_s}$, and write $\bar x = x/\sqrt{\bar\alpha}$ and $\sigma =
# \sqrt{(1-\bar\alpha)/\bar\alpha}$: what remains is
#
# $$\bar x_s = \bar x_t + (\sigma_s - \sigma_t)\,\epsilon_\theta(x_t, t),$$
#
# one step of Euler's method for the ODE $d\bar x/d\sigma = \epsilon_\theta(\bar x/\sqrt{\sigma^2+1}, t(\sigma))$.
# This notebook looks at that in numbers.

# %%
# %matplotlib inline
from inspect import getsource

from ddim_ode import decode, load_model, make_grid
from ddim_ode.analysis.lessons import ddim, decode_errors, plot_errors, show
from ddim_ode.analysis.schedulers import decode_with_scheduler
from ddim_ode.codec import draw_latents
from ddim_ode.solvers import get_solver

model = load_model("default")
print(model.summary())

# %% [markdown]
# ## The same images, by the formula and by the solver
#
# First the formula above as it stands, on the timesteps of the grid `trailing`; then the toolkit's `euler`.

# %%
print(getsource(ddim))

# %%
steps = 10
grid = make_grid(model.schedule, "trailing", steps)
x_T = draw_latents(4, (model.channels, model.height, model.width), seed=0)
by_formula = ddim(model.ode(), x_T, grid.downward())
images = decode(model.ode(), x_T, grid, get_solver("euler"))
print(f"largest difference: {float((images - by_formula).abs().max()):.1e}")

# %% [markdown]
# ## The same images, by diffusers
#
# diffusers' `DDIMScheduler` keeps its table of $\bar\alpha$ in float32, and so agrees to that.

# %%
by_diffusers, _, _ = decode_with_scheduler(model, x_T, "DDIMScheduler", {"timestep_spacing": "trailing"}, steps)
print(f"largest difference: {float((images - by_diffusers).abs().max()):.1e}")

# %% [markdown]
# ## What Euler leaves out
#
# Halving the steps doubles Euler's error: it is of first order. A method of higher order has less of it for as many
# evaluations of the network. The truth here is 160 steps of `reab3`.

# %%
budget = (5, 10, 20, 40)
truth = decode(model.ode(), x_T, make_grid(model.schedule, "log-snr", 160), get_solver("reab3"))
plot_errors(decode_errors(model, x_T, truth, ("euler", "dpmpp3m"), budget), budget)

# %% [markdown]
# What the four latents decode to:

# %%
show(truth, columns=4)
