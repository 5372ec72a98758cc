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
from itertools import pairwise

import torch

from ddim_ode import decode, load_model, make_grid
from ddim_ode.codec import draw_latents
from ddim_ode.images import tile
from solvers import get_solver

model = load_model("default")
model.schedule

# %% [markdown]
# ## The same images, by the formula and by the solver
#
# First the formula above as it stands, on the timesteps of the grid `trailing`; then the toolkit's `euler`.

# %%
steps = 10
grid = make_grid(model.schedule, "trailing", steps)
x_T = draw_latents(4, (model.channels, model.height, model.width), seed=0)
ode = model.ode()


def alpha_bar(sigma):
    return 1 / (1 + sigma**2)


sigmas = grid.downward()
x = x_T.clone()
with torch.no_grad():
    for sigma, sigma_next in pairwise(sigmas):
        a, a_next = alpha_bar(sigma), alpha_bar(sigma_next)
        eps = ode(sigma, x / a.sqrt())
        x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = a_next.sqrt() * x_0 + (1 - a_next).sqrt() * eps

images = decode(model.ode(), x_T, grid, get_solver("euler"))
print(f"largest difference: {float((images - x).abs().max()):.1e}")

# %% [markdown]
# ## The same images, by diffusers
#
# diffusers' `DDIMScheduler` keeps its table of $\bar\alpha$ in float32, and so agrees to that.

# %%
from diffusers import DDIMScheduler

betas = (1 - model.schedule.alpha_bar / torch.cat([torch.ones(1), model.schedule.alpha_bar[:-1]])).numpy()
scheduler = DDIMScheduler(
    trained_betas=betas,
    timestep_spacing="trailing",
    clip_sample=False,
    prediction_type=model.prediction,
)
scheduler.set_timesteps(steps)
x = x_T.float()
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(model.network(x, t.expand(len(x))), t, x).prev_sample
print(f"largest difference: {float((images - x).abs().max()):.1e}")

# %% [markdown]
# ## What Euler leaves out
#
# Halving the steps halves Euler's error: it is of first order. A method of higher order has less of it for as many
# evaluations of the network.

# %%
import matplotlib.pyplot as plt

budget = [5, 10, 20, 40]
truth = decode(model.ode(), x_T, make_grid(model.schedule, "log-snr", 160), get_solver("reab3"))
for name, marker in (("euler", "o"), ("dpmpp3m", "s")):
    errors = []
    for count in budget:
        found = decode(model.ode(), x_T, make_grid(model.schedule, "log-snr", count), get_solver(name))
        errors.append(float((found - truth).square().mean().sqrt()))
    plt.loglog(budget, errors, marker=marker, label=name)
plt.loglog(budget, [errors[0] * 5 / count for count in budget], "k--", linewidth=1, label="slope -1")
plt.xlabel("network evaluations")
plt.ylabel("RMSE to 160 steps, pixels in [-1, 1]")
plt.legend()
plt.show()

# %%
plt.imshow(((tile(truth, columns=4) + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
plt.axis("off")
plt.title("what the four latents decode to")
plt.show()
