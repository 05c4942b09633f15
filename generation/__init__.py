"""Words and pictures to 3D by score distillation: one file per method, on a diffusion prior (`priors.py`)."""
