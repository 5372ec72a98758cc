"""Models in single files, as they are passed around: each format a module, and ``load`` which tells them apart.

| what the file holds | config | module |
|---|---|---|
| a whole pipeline: Stable Diffusion, SDXL, SD3, FLUX | a folder of its family in diffusers | ``single_file`` |
| a bare ``UNet2DModel`` of diffusers | a folder with its ``config.json`` and its scheduler's | ``unet_file`` |
| a network of ermongroup/ddim or pesser/pytorch_diffusion | its YAML file | ``ddpm`` |
| a network of openai/guided-diffusion or improved-diffusion | its flags in YAML or JSON | ``guided`` |
| a pickle of NVlabs/edm | none | ``edm``, ``edm_pickle``, ``edm_networks`` |

Nothing of what a file says is ever run: weights are read as safetensors, or from pickles by machines that know tensors,
containers and a few names, and refuse every other one.
"""
