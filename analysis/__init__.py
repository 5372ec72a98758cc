"""Measurements on solvers and models: each script measures, saves, and plots from what it saved."""

# The registry: modules of this package by name, and in a few words what each shows; a list of them needs no import.
# Each has a command ``main``, with the options --model and --out among others.
ANALYSES: dict[str, str] = {
    "decode_error": "Few steps: our solvers against every scheduler of diffusers.",
    "overhead": "What solver and ODE cost beside the network.",
    "reconstruction": "What encoding and decoding loses against step count: Table 2 of DDIM.",
}
