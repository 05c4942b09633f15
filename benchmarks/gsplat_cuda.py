"""gsplat on the GPU: the same splats, camera and photo through its public functions, as its simple_trainer uses them.

Peers are imported when asked for; without gsplat `why_not` says so and its columns stay empty. The training step is
rasterization, loss, autograd and an optimiser over the six parameter groups. The loss is fused-ssim where that is
installed, else SSIM of torch convolutions, as gsplat's users without it would run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.scenes import BenchmarkScene
from scene.ops.photometric_loss import photometric_loss_reference
from scene.ops.splat_step import Rates

Optimiser = Literal["adam", "selective"]


def why_not() -> str | None:
    """Why gsplat cannot run here; None when it can. The first answer may take minutes: gsplat compiles its kernels."""
    try:
        backend: Any = importlib.import_module("gsplat.cuda._backend")
    except Exception as error:  # its build fails in as many ways as there are compilers
        return (
            f"gsplat is not installed or cannot be built ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
        )
    return None if backend._C is not None else "gsplat is installed without its CUDA kernels"


def version() -> str:
    """Of gsplat, and of fused-ssim where its training step uses that."""
    loss = "fused-ssim" if _fused_ssim() is not None else "torch SSIM"
    return f"gsplat {importlib.metadata.version('gsplat')}, {loss}"


@dataclass
class GsplatStep:
    """One training step of gsplat. scene: on the GPU. rates: learning rates as in ours; zeros keep the scene as is."""

    scene: BenchmarkScene
    rates: Rates
    optimiser: Optimiser = "adam"
    leaves: dict[str, Tensor] = field(init=False)
    target: Tensor = field(init=False)

    def __post_init__(self) -> None:
        named = self.scene.gaussians.parameters()
        self.leaves = {name: value.detach().clone().requires_grad_() for name, value in named.items()}
        self.target = self.scene.photo.float() / 255
        groups = [
            {"params": [leaf], "lr": rate, "name": name}
            for (name, leaf), rate in zip(self.leaves.items(), self.rates.by_group(), strict=True)
        ]
        self.optimisers = [self._optimiser(group) for group in groups]
        self.loss = _fused_loss if _fused_ssim() is not None else photometric_loss_reference

    def _optimiser(self, group: dict[str, Any]) -> Any:
        betas, eps = (self.rates.beta1, self.rates.beta2), self.rates.eps
        if self.optimiser == "selective":
            return importlib.import_module("gsplat.optimizers").SelectiveAdam([group], eps=eps, betas=betas)
        return torch.optim.Adam([group], eps=eps, betas=betas, fused=True)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Image [H, W, 3] on black, and which splats were seen [N]."""
        rasterization: Callable[..., Any] = importlib.import_module("gsplat").rasterization
        camera, p = self.scene.camera, self.leaves
        image, _, info = rasterization(
            p["means"],
            p["quats"],
            p["log_scales"].exp(),
            p["opacity_logits"].sigmoid(),
            torch.cat([p["sh_dc"][:, None], p["sh_rest"]], 1),
            camera.viewmat[None],
            camera.K[None],
            camera.width,
            camera.height,
            sh_degree=3,
            packed=False,  # simple_trainer's default, and the faster of the two
        )
        return image[0], (info["radii"][0] > 0).reshape(len(p["means"]), -1).all(1)

    def forward_backward(self, v_image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and the gradients by all parameters."""
        image, _ = self.forward()
        gradients = torch.autograd.grad(image, list(self.leaves.values()), v_image)
        return image.detach(), dict(zip(self.leaves, gradients, strict=True))

    def run(self) -> None:
        """The whole step."""
        image, seen = self.forward()
        self.loss(image, self.target).backward()
        for optimiser in self.optimisers:
            if self.optimiser == "selective":
                optimiser.step(seen)
            else:
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)


def _fused_ssim() -> Callable[..., Tensor] | None:
    try:
        return importlib.import_module("fused_ssim").fused_ssim
    except ImportError:
        return None


def _fused_loss(image: Tensor, target: Tensor) -> Tensor:
    fused = _fused_ssim()
    assert fused is not None
    planes = [picture.permute(2, 0, 1)[None] for picture in (image, target)]
    return 0.8 * (image - target).abs().mean() + 0.2 * (1 - fused(*planes, padding="valid"))
