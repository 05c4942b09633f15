"""Photos on the device that trains: each crosses the bus once, as bytes, as long as there is room for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.captures import Capture, Photo
from scene.errors import is_out_of_memory

SHARE = 0.25  # of the device memory that is free before training; splats and their moments need the rest


class PhotoCache:
    """Photos of a capture on a device. On the CPU they are the capture's own, which keeps what it has decoded.

    room: bytes for photos on the device, a share of what is free there where None. What came first stays: every epoch
    asks for every photo, so letting the oldest go would lose each just before its turn.
    """

    def __init__(self, capture: Capture, device: torch.device, room: int | None = None) -> None:
        self._capture, self._device = capture, device
        self._room = _free_bytes(device) if room is None else room
        self._held: dict[int, Photo] = {}
        self._level = 0
        self._pins = device.type == "cuda"

    def photo(self, index: int, level: int) -> Photo:
        """View `index` at 0.5**level of its size, on the device. Do not write to its tensors."""
        if self._device.type == "cpu":
            return self._capture.photo(index, level)
        self._turn_to(level)
        if index in self._held:
            return self._held[index]
        photo = self._capture.photo(index, level)
        moved = self._moved(photo) or self._moved_at_any_cost(photo)
        if photo.nbytes <= self._room:
            self._room -= photo.nbytes
            self._held[index] = moved
        return moved

    def prefetch(self, indices: Sequence[int], level: int) -> None:
        """Have those decoded that are not on the device yet."""
        held = self._held if level == self._level else {}
        self._capture.prefetch([index for index in indices if index not in held], level)

    def drop(self) -> None:
        """Give the device's memory back and take none again."""
        self._held.clear()
        self._room = 0

    def _turn_to(self, level: int) -> None:
        """Photos of another size are not asked for again: training goes from coarse to fine."""
        if level != self._level:
            self._room += sum(photo.nbytes for photo in self._held.values())
            self._held.clear()
            self._level = level

    def _moved(self, photo: Photo) -> Photo | None:
        """A copy on the device, on its way while the host goes on; None when memory ran out, there or for pinning."""
        try:
            return Photo(self._sent(photo.rgb), None if photo.alpha is None else self._sent(photo.alpha))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _moved_at_any_cost(self, photo: Photo) -> Photo:
        """The same without pinned memory, after the photos have made way: what trains is worth more than they are."""
        self.drop()
        self._pins = False
        return Photo(self._sent(photo.rgb), None if photo.alpha is None else self._sent(photo.alpha))

    def _sent(self, pixels: Tensor) -> Tensor:
        if self._pins:
            pixels = pixels.pin_memory()
        return pixels.to(self._device, non_blocking=True)


def _free_bytes(device: torch.device) -> int:
    return int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
