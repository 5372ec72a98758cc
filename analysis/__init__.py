"""Measurements on solvers and models: each script measures, saves, and plots from what it saved."""

# The registry: modules of this package by name, and in a few words what each shows; a list of them needs no import.
# Each has a command ``main``, with the options --model and --out among others. All are in the report but 'quality',
# which needs thousands of pictures, 'learning', 'precision', 'speed' and 'dataset_speed', which take long, and
# 'round_trips', which is of pipelines.
ANALYSES: dict[str, str] = {
    "comparison": "What is gained over diffusers: there and back, latents, few-step decoding.",
    "consistency": "One latent, decoded with more and more steps.",
    "convergence": "The order of each solver, on paper and on the network.",
    "cross_solver": "Encode with one solver, decode with another.",
    "curvature": "Where the trajectory bends, and where each grid puts its steps.",
    "dataset_speed": "Data sets: two workers against two encoders, and what the driver takes.",
    "decode_error": "Few steps: our solvers against the schedulers of diffusers.",
    "euler_time": "Euler in sigma against Euler in the time of the score SDE's ODE.",
    "learning": "How much it takes to learn a solver, and what else it serves.",
    "overhead": "What solver and ODE cost beside the network.",
    "precision": "What networks in half precision, and states in single, cost.",
    "quality": "How good models are: their error in eps, and how far their samples are from test images.",
    "reconstruction": "What encoding and decoding loses against step count: Table 2 of DDIM.",
    "round_trips": "Pipelines of diffusers, there and back: ours against DDIM's inverse and Euler.",
    "sample_quality": "Samples with few steps and with noise: Table 1 and Figure 4 of DDIM.",
    "speed": "Network calls, what a walk adds, and images per second at equal error, beside diffusers.",
    "work_precision": "Accuracy against evaluations and seconds: adaptive solvers and fixed steps.",
}
