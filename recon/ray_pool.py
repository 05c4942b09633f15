"""The pixels of all training photos as one pool of rays to draw from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data.captures import Capture
from recon.initial_points import train_cameras

MAX_PIXELS = 64_000_000  # of all photos together; larger sets are used at a fraction of their size
AT_ONCE = 1 << 18
AHEAD = 8  # photos that are decoded in the background


class RayPool:
    """Rays through the pixel centres of the training photos, and what they show.

    Photos whose pixels would exceed `max_pixels` together are halved until they do not. Ids count pixels photo after
    photo, row after row.
    """

    def __init__(self, capture: Capture, device: torch.device, *, max_pixels: int = MAX_PIXELS) -> None:
        total = sum(capture.views[i].width * capture.views[i].height for i in capture.train)
        self.level = max(0, math.ceil(math.log(total / max_pixels, 4))) if total > max_pixels else 0
        self.has_alpha = any(capture.views[i].has_alpha for i in capture.train)
        pixels, intrinsics, widths, starts = [], [], [], [0]
        cameras = []
        for place, (index, camera) in enumerate(zip(capture.train, train_cameras(capture), strict=True)):
            capture.prefetch(capture.train[place + 1 : place + 1 + AHEAD], self.level)
            photo = capture.photo(index, self.level)
            height, width = photo.rgb.shape[:2]
            camera = camera.resized(width, height)
            flat = photo.rgb.reshape(-1, 3)
            if self.has_alpha:
                alpha = torch.full((len(flat), 1), 255, dtype=torch.uint8) if photo.alpha is None else photo.alpha
                flat = torch.cat([flat, alpha.reshape(-1, 1)], dim=1)
            pixels.append(flat)
            K = camera.K.double()
            intrinsics.append(torch.stack([K[0, 0], K[1, 1], K[0, 2], K[1, 2]]).float())
            widths.append(width)
            starts.append(starts[-1] + len(flat))
            cameras.append(camera)
        self._pixels = torch.cat(pixels).to(device)
        self._intrinsics = torch.stack(intrinsics).to(device)
        self._widths = torch.tensor(widths, device=device)
        self._starts = torch.tensor(starts, device=device)
        self._c2w = torch.stack([camera.c2w.float() for camera in cameras]).to(device)
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        """Number of rays that are drawn from."""
        return len(self._pixels) if self._kept is None else len(self._kept)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] random ids, with replacement."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        chosen = chosen.to(self._pixels.device, non_blocking=True)
        return chosen if self._kept is None else self._kept[chosen].long()

    def rays(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Origins and unit directions, [R, 3] each, in the world."""
        view = torch.bucketize(ids, self._starts, right=True) - 1
        place = ids - self._starts[view]
        width = self._widths[view]
        fx, fy, cx, cy = self._intrinsics[view].unbind(-1)
        x = (place % width + 0.5 - cx) / fx
        y = (torch.div(place, width, rounding_mode="floor") + 0.5 - cy) / fy
        c2w = self._c2w[view]
        directions = x[:, None] * c2w[:, :3, 0] + y[:, None] * c2w[:, :3, 1] + c2w[:, :3, 2]
        return c2w[:, :3, 3], torch.nn.functional.normalize(directions, dim=-1)

    def colors(self, ids: Tensor, background: Tensor) -> Tensor:
        """[R, 3] in 0..1, over a background [3] where photos are transparent."""
        pixels = self._pixels[ids].float() / 255
        if not self.has_alpha:
            return pixels
        return pixels[:, :3] * pixels[:, 3:] + background * (1 - pixels[:, 3:])

    def keep(self, wanted: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Draw only rays for which wanted(origins, directions) is true from now on; all of them when none is."""
        found = []
        for first in range(0, len(self._pixels), AT_ONCE):
            ids = torch.arange(first, min(first + AT_ONCE, len(self._pixels)), device=self._pixels.device)
            found.append(ids[wanted(*self.rays(ids))].to(torch.int32))
        kept = torch.cat(found)
        self._kept = kept if len(kept) else None
