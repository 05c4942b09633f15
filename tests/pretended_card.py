"""A GPU that is not there: tensors that lie on the CPU and say cuda:0, so that a run shows where it would wait or fail.

    with pretended_card() as card:
        train(capture, config, device=CARD)      # kernels run on the host shim
    card.waits                                   # places where the host would have waited for the device

Within it an operation on tensors of two devices, and a kernel that is given a CPU tensor, raise as on a real card: CPU
and CUDA tensors cannot be told apart in any other test here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from scene.ops.gpu.launch import Argument, Size, on_host
from tests.shim.launcher import HostLauncher

CARD = torch.device("cuda", 0)
FREE_BYTES = 1 << 30
ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(f"{ROOT / folder}/" for folder in ("recon", "scene", "apps", "benchmarks"))

# Operations that tell the host how large their result is, or what it is.
ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_consecutive"}


class CardTensor(Tensor):
    """A tensor on the pretended card. numbers: where its numbers are."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, numbers: Tensor) -> CardTensor:
        layout = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype, device=CARD, **layout)

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the pretended card outside of pretended_card()")

    # What follows would ask for a real card's context before it comes to the mode below.

    def __getitem__(self, index: Any) -> CardTensor:
        _current().indexed("index", index)
        with _disable_current_modes():
            return CardTensor(self.numbers[_numbers(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        _current().indexed("index_put", index)
        if isinstance(value, Tensor) and not isinstance(value, CardTensor) and value.dim() > 0:
            _current().wait("copy to the card")
        with _disable_current_modes():
            self.numbers[_numbers(index)] = _numbers(value)

    def tolist(self) -> Any:
        _current().wait("tolist")
        return self.numbers.tolist()

    def new_tensor(self, data: Any, **options: Any) -> CardTensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        _current().wait("new_tensor")
        with _disable_current_modes():
            return CardTensor(self.numbers.new_tensor(data, **options))

    def nonzero(self) -> CardTensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        _current().wait("nonzero")
        with _disable_current_modes():
            return CardTensor(self.numbers.nonzero())

    def copy_(self, source: Tensor, non_blocking: bool = False) -> CardTensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not (isinstance(source, CardTensor) or non_blocking):
            _current().wait("copy to the card")
        with _disable_current_modes():
            self.numbers.copy_(_numbers(source))
        return self

    def contiguous(self) -> CardTensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.is_contiguous():
            return self
        _current().operations["clone"] += 1
        with _disable_current_modes():
            return CardTensor(self.numbers.contiguous())

    def __invert__(self) -> Tensor:
        return torch.logical_not(self)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"CardTensor({self.numbers})"


@dataclass
class PretendedCard:
    """What a run asked of the card."""

    waits: list[str] = field(default_factory=list)  # operation and line
    doubles: list[str] = field(default_factory=list)  # operations in float64, and their line
    operations: Counter[str] = field(default_factory=Counter)  # of torch, that start a kernel
    launches: Counter[str] = field(default_factory=Counter)  # of our kernels

    def forget(self) -> None:
        """Starts counting anew."""
        for part in (self.waits, self.doubles, self.operations, self.launches):
            part.clear()

    def wait(self, what: str) -> None:
        self.waits.append(f"{what} at {_line()}")

    def indexed(self, what: str, index: Any) -> None:
        """Notes an indexing; by a mask or by a CPU tensor it waits."""
        parts = [part for part in (index if isinstance(index, tuple) else (index,)) if isinstance(part, Tensor)]
        if what == "index_put" or parts:
            self.operations[what] += 1
        for part in parts:
            if part.dtype in (torch.bool, torch.uint8) or not isinstance(part, CardTensor):
                self.wait(f"{what} by a mask or a CPU tensor")


_cards: list[PretendedCard] = []


def _current() -> PretendedCard:
    return _cards[-1]


def _numbers(value: Any) -> Any:
    return tree_map(lambda part: part.numbers if isinstance(part, CardTensor) else part, value)


def _line() -> str:
    """The innermost line of ours that runs."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


class _Mode(TorchDispatchMode):
    """Runs each operation on the CPU and judges it as a card's."""

    def __init__(self, card: PretendedCard) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        on_card = any(isinstance(part, CardTensor) for part in tensors)
        wanted = kwargs.get("device")
        lands = on_card if wanted is None else torch.device(wanted).type == "cuda"
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        if lands and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
        if name in ("_to_copy", "copy_"):
            crosses = (lands != on_card) if name == "_to_copy" else len({type(part) for part in tensors}) > 1
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if crosses and blocking:
                self.card.wait("copy between host and card")
        elif on_card:
            self._judge(func, name, args, tensors)
        result = func(*_numbers(args), **_numbers(kwargs))
        if lands:
            self._note(func, name, result)
        first = func._schema.arguments[0] if func._schema.arguments else None
        if first is not None and first.alias_info is not None and first.alias_info.is_write:
            return args[0]
        return tree_map(lambda part: CardTensor(part) if lands and isinstance(part, Tensor) else part, result)

    def _judge(self, func: Any, name: str, args: Any, tensors: Sequence[Tensor]) -> None:
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            self.card.indexed(name, tuple(args[1]))
            tensors = [args[0], *args[2:3]]
        elif name in ASKING or (name == "repeat_interleave" and func._overloadname == "Tensor"):
            self.card.wait(name)
        if any(not isinstance(part, CardTensor) and part.dim() > 0 for part in tensors if isinstance(part, Tensor)):
            raise RuntimeError(f"{func} at {_line()}: Expected all tensors to be on the same device")

    def _note(self, func: Any, name: str, result: Any) -> None:
        returned = func._schema.returns
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in returned)
        if not view and not name.startswith(("empty", "new_empty", "detach", "lift")):
            self.card.operations[name] += 1
            if any(isinstance(part, Tensor) and part.dtype == torch.float64 for part in tree_leaves(result)):
                self.card.doubles.append(f"{name} at {_line()}")


class _Event:
    """Stands in for torch.cuda.Event: what the host launcher ran has ended."""

    def record(self, stream: object) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def pretended_card() -> Iterator[PretendedCard]:
    """Within it `CARD` is a device. Not for a machine with a real card, which needs no other."""
    card, shim = PretendedCard(), HostLauncher()

    def launcher(source: str, name: str, grid: Size, block: Size, arguments: Sequence[Argument]) -> None:
        for position, argument in enumerate(arguments):
            if isinstance(argument, Tensor) and not isinstance(argument, CardTensor):
                raise RuntimeError(f"{source}.{name}: argument {position} lies on the CPU: an illegal memory access")
        card.launches[f"{source}.{name}"] += 1
        with _disable_current_modes():
            shim(source, name, grid, block, [_numbers(argument) for argument in arguments])

    with ExitStack() as stack:
        patched = {"_lazy_init": lambda: None, "mem_get_info": lambda device: (FREE_BYTES, FREE_BYTES)}
        patched |= {"Event": _Event, "current_stream": lambda device: None}
        for name, stand_in in patched.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda pixels: pixels))
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device=CARD) copies in sight of the mode
        stack.enter_context(on_host(launcher))
        _cards.append(card)
        stack.callback(_cards.pop)
        with _Mode(card):
            yield card
