"""Training a diffusion model on a folder or zip of pictures; what comes out opens in diffusers and here."""
