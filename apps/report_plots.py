"""Plots of the report as inline SVG: curves of the training and maps of the cameras. Colours come from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import torch
from torch import Tensor

from apps.run_cameras import RunCameras
from scene.camera_paths import stage_of

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 14, 30
MAX_POINTS = 400
MAP_SIZE = 460


def curve(title: str, points: Sequence[tuple[float, float]], *, logarithmic: bool = False, dots: bool = False) -> str:
    """A line plot of (step, value) pairs; empty when fewer than two are finite."""
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not logarithmic)]
    if len(kept) < 2:
        return ""
    kept = kept[:: max(1, len(kept) // MAX_POINTS)]
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    xs, ys = [x for x, _ in kept], [scale(y) for _, y in kept]
    ticks_x = nice_ticks(0, max(xs), 5)
    ticks_y = log_ticks(min(ys), max(ys)) if logarithmic else nice_ticks(min(ys), max(ys), 4)
    low_y, high_y = min(min(ys), *ticks_y), max(max(ys), *ticks_y)
    high_x = max(max(xs), 1e-9)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / high_x
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low_y) / ((high_y - low_y) or 1))

    grid = []
    for tick in ticks_y:
        _, y = at(0, tick)
        label = number(10**tick if logarithmic else tick)
        grid.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        grid.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in ticks_x:
        x, _ = at(tick, low_y)
        grid.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(tick)}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(x, y) for x, y in zip(xs, ys)))
    marks = [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in map(at, xs, ys)] if dots else []
    return _figure(title, WIDTH, HEIGHT, [*grid, f'<polyline class="line" points="{line}"/>', *marks])


def _figure(title: str, width: int, height: int, shapes: Sequence[str]) -> str:
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(shapes)}</svg></figure>'
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that cover low to high."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten around low to high (logarithms themselves)."""
    powers = range(math.floor(low) - 1, math.ceil(high) + 2)
    marks = sorted(power + math.log10(factor) for power in powers for factor in (1, 2, 5))
    below = max(mark for mark in marks if mark <= low + 1e-9)
    above = min(mark for mark in marks if mark >= high - 1e-9)
    inside = [mark for mark in marks if below <= mark <= above]
    return inside[:: max(1, math.ceil(len(inside) / 6))]


def number(value: float) -> str:
    """A short label: 1.2M, 40k, 0.05."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def camera_maps(seen: RunCameras) -> str:
    """The cameras from above and from the side at an angle, with a sample of the points."""
    stage = stage_of(seen.cameras, up=seen.up)
    east, north = stage.axes
    tilt = math.radians(28)
    turned = math.cos(0.6) * east + math.sin(0.6) * north
    depth = -math.sin(0.6) * east + math.cos(0.6) * north
    upwards = math.cos(tilt) * stage.up + math.sin(tilt) * depth
    views = (("From above", east, north), ("From the side", turned, upwards))
    return "".join(_map(title, seen, across, high, stage.focus) for title, across, high in views)


def _map(title: str, seen: RunCameras, across: Tensor, high: Tensor, focus: Tensor) -> str:
    """Orthographic drawing with `across` to the right and `high` upwards in the picture."""
    basis = torch.stack([across, -high]).double()
    c2w = torch.stack([camera.c2w for camera in seen.cameras]).double()
    centers = (c2w[:, :3, 3] - focus) @ basis.T
    points = (seen.points[:, :3].double() - focus) @ basis.T
    # A few far points of a sparse cloud must not shrink the cameras to a dot: only points about as far out as the
    # cameras count, and of those the inner nine tenths.
    near = points[points.norm(dim=-1) <= 1.2 * float(centers.norm(dim=-1).max())]
    shown = centers
    if len(near) >= 10:
        shown = torch.cat([centers, near.quantile(torch.tensor([0.05, 0.95], dtype=near.dtype), dim=0)])
    low, high_corner = shown.amin(0), shown.amax(0)
    middle, reach = (low + high_corner) / 2, float((high_corner - low).max()) / 2 or 1.0
    scale = MAP_SIZE / 2 / (1.18 * reach)
    points = points - middle
    shapes = []
    for (x, y), color in zip((MAP_SIZE / 2 + points * scale).tolist(), seen.points[:, 3:].int().tolist()):
        if 0 <= x <= MAP_SIZE and 0 <= y <= MAP_SIZE:
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.3" fill="rgb({color[0]},{color[1]},{color[2]})"/>')
    for name, camera, held in zip(seen.names, seen.cameras, seen.held_out):
        corners = _frustum(camera.c2w.double(), camera.fov_x, camera.fov_y, 0.11 * reach)
        flat = MAP_SIZE / 2 + ((corners - focus) @ basis.T - middle) * scale
        apex, *rim = [f"{x:.1f} {y:.1f}" for x, y in flat.tolist()]
        path = f"M{rim[0]}L{rim[1]}L{rim[2]}L{rim[3]}Z" + "".join(f"M{apex}L{corner}" for corner in rim)
        kind = "held" if held else "cam"
        shapes.append(f'<path class="{kind}" d="{path}"><title>{escape(name)}</title></path>')
    return _figure(title, MAP_SIZE, MAP_SIZE, shapes)


def _frustum(c2w: Tensor, fov_x: float, fov_y: float, depth: float) -> Tensor:
    """[5, 3] apex and far corners of a camera's pyramid."""
    x, y = math.tan(fov_x / 2), math.tan(fov_y / 2)
    corners = torch.tensor([[0, 0, 0], [-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]], dtype=torch.float64) * depth
    return corners @ c2w[:3, :3].T + c2w[:3, 3]
