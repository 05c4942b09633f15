"""Scene representations, differentiable rendering, meshes, formats and the run folder."""
