"""Pictures from text: Stable Diffusion, SDXL and Flux models of your own, through diffusers and torch.

    backend    what is asked for, step by step           folder     what may be loaded, checked before it is
    pipes      the pipelines: from text, from a picture, within a mask

Needs the extra `diffusion`. The worker's host loads it in a child process; it fetches nothing and runs no
code that comes with a model.
"""

from inferhub.backends.diffusers.backend import Diffusers

BACKEND = Diffusers
