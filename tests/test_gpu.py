"""What runs on an NVIDIA GPU today, the plain-torch reference, agrees with the CPU kernels (`make gpu-check`)."""

from __future__ import annotations

import pytest
import torch

from scene.cameras import Camera, look_at
from scene.gaussians import Gaussians
from scene.ops.photometric_loss import photometric_loss
from scene.rasterize import render

pytestmark = pytest.mark.cuda


def scene() -> tuple[Gaussians, Camera]:
    generator = torch.Generator().manual_seed(0)
    gaussians = Gaussians(
        means=torch.randn(300, 3, generator=generator) * 0.5,
        quats=torch.randn(300, 4, generator=generator),
        log_scales=torch.randn(300, 3, generator=generator) * 0.3 - 2.5,
        opacity_logits=torch.randn(300, generator=generator),
        sh_dc=torch.randn(300, 3, generator=generator),
        sh_rest=torch.randn(300, 15, 3, generator=generator) * 0.1,
    )
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    pose = look_at(torch.tensor([0.0, -3.0, 0.5]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return gaussians, Camera(K, pose, 64, 48)


def gradients(device: str) -> dict[str, torch.Tensor]:
    gaussians, camera = scene()
    leaves = Gaussians(**{k: v.to(device).requires_grad_() for k, v in gaussians.parameters().items()})
    photo = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(1)).to(device)
    shown = render(leaves, camera, with_geometry=True)
    assert shown.depth is not None
    (photometric_loss(shown.rgb, photo) + shown.depth.mean()).backward()
    found = {"rgb": shown.rgb, "depth": shown.depth} | {k: v.grad for k, v in leaves.parameters().items()}
    return {name: value.detach().cpu() for name, value in found.items() if value is not None}


def test_pictures_and_gradients_on_the_gpu_are_those_of_the_cpu() -> None:
    ours, theirs = gradients("cuda"), gradients("cpu")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        scale = float(theirs[name].abs().max()) + 1e-8
        assert float((value - theirs[name]).abs().max()) < 1e-3 * scale, name  # float32 sums in another order
