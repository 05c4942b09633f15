"""Where rays enter and leave convex primitives, in closed form.

Each function takes origins and directions [..., 3] in the primitive's frame and sizes [..., 3] (`shapes.py`), and
returns the two parameters t of origin + t direction between which the ray is inside; the first is larger than the
second where it misses. Directions need no unit length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from generation.shapes import Kind

Span = tuple[Tensor, Tensor]


def _roots(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a t^2 + 2 b t + c = 0: discriminant / 4, smaller and larger root, without cancellation."""
    disc = b * b - a * c
    q = -(b + torch.copysign(disc.clamp(min=0).sqrt(), b))
    one, two = q / a, c / torch.where(q == 0, torch.ones_like(q), q)
    two = torch.where(q == 0, one, two)
    return disc, torch.minimum(one, two), torch.maximum(one, two)


def _where_hit(hit: Tensor, low: Tensor, high: Tensor) -> Span:
    return torch.where(hit, low, torch.inf), torch.where(hit, high, -torch.inf)


def _slab(o: Tensor, d: Tensor, h: Tensor) -> Span:
    """|o + t d| <= h along one axis; a ray along the slab is inside for ever or never."""
    safe = torch.where(d.abs() < 1e-12, torch.full_like(d, 1e-12), d)
    one, two = (-h - o) / safe, (h - o) / safe
    return torch.minimum(one, two), torch.maximum(one, two)


def _both(a: Span, b: Span) -> Span:
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


def _ball(o: Tensor, d: Tensor, squared_radius: Tensor | float) -> Span:
    disc, low, high = _roots((d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - squared_radius)
    return _where_hit(disc > 0, low, high)


def _tube(o: Tensor, d: Tensor, radius: Tensor) -> Span:
    """x^2 + y^2 <= radius^2."""
    x, y, u, v = o[..., 0], o[..., 1], d[..., 0], d[..., 1]
    a = (u * u + v * v).clamp(min=1e-20)
    disc, low, high = _roots(a, x * u + y * v, x * x + y * y - radius * radius)
    return _where_hit(disc > 0, low, high)


def _ellipsoid(o: Tensor, d: Tensor, s: Tensor) -> Span:
    return _ball(o / s, d / s, 1.0)


def _box(o: Tensor, d: Tensor, s: Tensor) -> Span:
    low, high = _slab(o, d, s)
    return low.amax(-1), high.amin(-1)


def _cylinder(o: Tensor, d: Tensor, s: Tensor) -> Span:
    return _both(_tube(o, d, s[..., 0]), _slab(o[..., 2], d[..., 2], s[..., 2]))


def _cone(o: Tensor, d: Tensor, s: Tensor) -> Span:
    """Between the ends only one half of the double cone exists, so what is inside is one stretch of the ray.

    With x^2 + y^2 <= (m + k z)^2 as a t^2 + 2 b t + c <= 0: for a > 0 inside is between the roots; for a < 0, a ray
    steeper than the side, it is all but what lies between them.
    """
    slab = _slab(o[..., 2], d[..., 2], s[..., 2])
    k = (s[..., 1] - s[..., 0]) / (2 * s[..., 2])
    wide = 0.5 * (s[..., 0] + s[..., 1]) + k * o[..., 2]
    x, y, u, v = o[..., 0], o[..., 1], d[..., 0], d[..., 1]
    tilt = k * d[..., 2]
    a = u * u + v * v - tilt * tilt
    a = torch.where(a.abs() < 1e-12, torch.full_like(a, 1e-12), a)
    disc, low, high = _roots(a, x * u + y * v - wide * tilt, x * x + y * y - wide * wide)
    between = _both(slab, _where_hit(disc > 0, low, high))
    first = slab[0], torch.minimum(slab[1], torch.where(disc > 0, low, torch.inf))
    last = torch.maximum(slab[0], torch.where(disc > 0, high, -torch.inf)), slab[1]
    takes_first = first[1] > first[0]
    beyond = torch.where(takes_first, first[0], last[0]), torch.where(takes_first, first[1], last[1])
    steep = a < 0
    return torch.where(steep, beyond[0], between[0]), torch.where(steep, beyond[1], between[1])


def _capsule(o: Tensor, d: Tensor, s: Tensor) -> Span:
    """A tube and two balls whose union is convex: from the first entry to the last exit."""
    radius, h = s[..., 0], s[..., 2]
    low, high = _both(_tube(o, d, radius), _slab(o[..., 2], d[..., 2], h))
    missed = low >= high
    low, high = low.masked_fill(missed, torch.inf), high.masked_fill(missed, -torch.inf)
    for end in (-h, h):
        to_end = torch.stack([o[..., 0], o[..., 1], o[..., 2] - end], dim=-1)
        enter, leave = _ball(to_end, d, radius * radius)
        low, high = torch.minimum(low, enter), torch.maximum(high, leave)
    return low, high


SPANS: dict[Kind, Callable[[Tensor, Tensor, Tensor], Span]] = {
    Kind.ELLIPSOID: _ellipsoid,
    Kind.BOX: _box,
    Kind.CYLINDER: _cylinder,
    Kind.CONE: _cone,
    Kind.CAPSULE: _capsule,
}


def first_hit(kind: Kind, origins: Tensor, directions: Tensor, sizes: Tensor) -> Tensor:
    """[...] least t > 0 at which a ray meets the surface; infinity where it does not.

    Rays are followed from where they pass the primitive's centre: single precision then suffices for small primitives
    far away (Haines, Guenther and Akenine-Moeller, "Precision Improvements for Ray/Sphere Intersection", 2019).
    """
    shift = -(origins * directions).sum(-1) / (directions * directions).sum(-1)
    low, high = SPANS[kind](origins + shift[..., None] * directions, directions, sizes)
    low, high = low + shift, high + shift
    front = torch.where(low > 0, low, high)
    return torch.where((low < high) & (front > 0), front, torch.inf)
