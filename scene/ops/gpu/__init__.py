"""Kernels on NVIDIA GPUs: `runtime` compiles and keeps them, `launch` starts them, `kernels` lists what there is."""
