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
# # Invert and edit a picture with Stable Diffusion
#
# This notebook is written for real weights: `stable-diffusion-v1-5/stable-diffusion-v1-5` from the Hub, or the pipeline
# of diffusers whose folder or name is in `DDIM_ODE_PIPELINE`. A GPU is of help. The project's tests run it in CI on a
# tiny pipeline of random weights. **Its pictures then mean nothing**, and its errors say only that all fits together.

# %%
# %matplotlib inline
import os
from pathlib import Path

from ddim_ode import Session, analysis, load_latent
from ddim_ode.analysis.round_trips import Asked, measure
from ddim_ode.analysis.round_trips_plot import TripRow, plot, table
from ddim_ode.analysis.rows import Results
from ddim_ode.devices import find_device
from ddim_ode.pipelines import load_pipeline

name = os.environ.get("DDIM_ODE_PIPELINE", "stable-diffusion-v1-5/stable-diffusion-v1-5")
steps = int(os.environ.get("DDIM_ODE_STEPS", "20"))
out = Path(os.environ.get("DDIM_ODE_OUT", "demo/notebooks"))
photo = Path(analysis.__file__).parents[1] / "examples" / "photo.jpg"
prompt, other_prompt = "a photo of a horse", "a watercolour of a horse"

# %% [markdown]
# ## A pipeline is a model
#
# A session takes a pipeline as it is. What it integrates is
#
# $$\frac{\mathrm d\bar x}{\mathrm d\sigma} = \epsilon_\theta(\bar x, \sigma;\ \text{prompt, guidance}),
#   \qquad \bar x = x_0 + \sigma\,\epsilon,$$
#
# where $x_0$ is what the autoencoder makes of the picture, and $\epsilon_\theta$ is what the pipeline's own call makes
# of network, prompt and guidance: it runs with a scheduler that only asks and hands over. Nothing is left on the
# pipeline, and LoRA, ControlNet and masks count.

# %%
pipe = load_pipeline(name, device=find_device("auto"))
session = Session(pipe, prompt=prompt)
print(session.model.summary())

# %% [markdown]
# ## Three errors
#
# A picture that was encoded and decoded has lost something in two places. The report gives them one by one: what the
# ODE has lost, in $x_0$ and as PSNR against the autoencoder's own reconstruction; what the autoencoder alone has lost,
# which no solver can mend; and both together, first in the line.

# %%
found = session.reconstruct(photo, steps=steps)
print(found.report())
found.picture.to_pil()

# %%
print(session.reconstruct(photo, steps=steps, solver="reversible-heun").report())

# %% [markdown]
# ## Against DDIM's inverse
#
# `DDIMInverseScheduler` of diffusers takes Euler's steps up with the slope of where it comes from, read at the label of
# where it goes. Decoding does not undo that. `reversible-heun` keeps a second state, and leads back to rounding; `exact
# euler` finds by iteration what DDIM's own decoder leads back from, and has one state alone, but needs many evaluations
# on the way up. Without guidance first.

# %%
asked = Asked(prompt)
results = Results(TripRow, out / "stable-diffusion", {"pipeline": name, "prompt": prompt})
measure(Path(name).name, pipe, [photo], asked, (1.0,), (steps,), results=results)
print(table(results.rows))

# %% [markdown]
# ## Why inversion is at guidance 1
#
# Guidance $w$ makes the slope $\epsilon_\varnothing + w\,(\epsilon_c - \epsilon_\varnothing)$. The difference of the
# two is stretched $w$ times, and errors with it: steps that are undone badly at $w = 1$ are undone worse at $w = 5$, an
# iteration may find no inverse, and the latent is less like noise, whose second moment is 1. To encode at guidance 1
# and to decode with more is the safe way; it is an edit, and the picture is not meant to come back.

# %%
measure(Path(name).name, pipe, [photo], asked, (5.0,), (steps,), results=results)
print(table(results.rows))
plot(results.rows)

# %% [markdown]
# ## An edit
#
# The picture is encoded as what it is, at guidance 1, up to a part of all timesteps, the strength, and decoded as
# something else. The strip shows the picture, what comes back of it from the largest strength as what it was, and the
# edits: more strength changes more.

# %%
edit = session.edit(photo, to=other_prompt, guidance=5.0, strength=[0.5, 0.7], steps=steps)
edit.strip.to_pil()

# %% [markdown]
# ## A latent in a file
#
# It holds solver, grid, prompt and guidance, and what belongs to the picture; and both states of a reversible solver.
# So it is decoded as it was encoded, or as something else where one asks for that.

# %%
path = out / "photo.latent.pt"
session.encode(photo, solver="reversible-heun", steps=steps).save(path, overwrite=True)
print(load_latent(path).summary())
session.decode(path).to_pil()

# %%
Session(pipe, prompt=other_prompt, guidance=5.0).decode(path).to_pil()
