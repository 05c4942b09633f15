"""A method's options as a form: the fields of its `Config` with their types, defaults and words, and back into flags.

There is no list of options here: what the command line has, the form has.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from apps.generate_options import GENERATORS
from apps.options import METHODS
from scene.errors import InputError, did_you_mean

HIDDEN = frozenset(("seed", "checkpoint_seconds"))  # a field of every form, and what cancelling in time rests on
MAX_WORDS = 200  # characters of a text option


@dataclass(frozen=True)
class Field:
    """One option. kind: int, float, bool, str or choice; default as of the preset that is named first."""

    name: str
    kind: str
    default: Any
    optional: bool
    choices: tuple[str, ...]
    help: str

    @property
    def label(self) -> str:
        """The name for people."""
        return self.name.replace("_", " ")

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return "--" + self.name.replace("_", "-")


@cache
def fields_of(method: str) -> tuple[Field, ...]:
    """The options of a method's `Config`, in its order. Raises InputError for a method that does not exist."""
    module = importlib.import_module(_module(method))
    hints, help_of = get_type_hints(module.Config), _field_docs(module.Config)
    defaults = module.Config()
    found = []
    for field in dataclasses.fields(module.Config):
        if field.name in HIDDEN:
            continue
        kind, optional, choices = _kind(hints[field.name])
        default = getattr(defaults, field.name)
        found.append(Field(field.name, kind, default, optional, choices, help_of.get(field.name, "")))
    return tuple(found)


def presets_of(method: str) -> tuple[str, ...]:
    """Names of a method's presets."""
    return tuple(importlib.import_module(_module(method)).PRESETS)


def as_flags(method: str, values: Mapping[str, Any]) -> list[str]:
    """Flags of the values that were set; empty ones keep the preset's. Raises InputError for what no form sends."""
    known = {field.name: field for field in fields_of(method)}
    flags: list[str] = []
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{method} has no option {str(name)[:40]!r}{did_you_mean(str(name), known)}")
        if value is not None and value != "":
            flags += _flag(known[name], value)
    return flags


def _flag(field: Field, value: Any) -> list[str]:
    wrong = InputError(f"{field.label} should be {_wanted(field)}, got {str(value)[:40]!r}")
    if field.kind == "bool":
        if type(value) is not bool:
            raise wrong
        off = "--no-" + field.flag.removeprefix("--")
        return [] if value == field.default else [field.flag if value else off]
    if field.kind == "choice":
        if value not in field.choices:
            raise wrong
    elif field.kind == "str":
        if not isinstance(value, str) or len(value) > MAX_WORDS or not value.isprintable():
            raise wrong
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong
    elif field.kind == "int":
        if value != int(value):
            raise wrong
        value = int(value)
    return [f"{field.flag}={value}"]  # one word, so that no value is taken for a flag


def _wanted(field: Field) -> str:
    if field.kind == "choice":
        return f"one of {', '.join(field.choices)}"
    words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    return words.get(field.kind, f"a line of at most {MAX_WORDS} characters")


def _module(method: str) -> str:
    known = METHODS | GENERATORS
    if method not in known:
        raise InputError(f"there is no method {str(method)[:40]!r}{did_you_mean(str(method), known)}")
    return known[method]


def _kind(hint: Any) -> tuple[str, bool, tuple[str, ...]]:
    """(kind, whether it may be left open, choices) of an annotation."""
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (choice for choice in get_args(hint) if choice is not NoneType)
        kind, _, choices = _kind(inner)
        return kind, True, choices
    if get_origin(hint) is Literal:
        return "choice", False, tuple(map(str, get_args(hint)))
    if hint in (int, float, bool, str):
        return hint.__name__, False, ()
    raise TypeError(f"a form has no field for {hint}; teach apps/web/forms.py this type")


def _field_docs(cls: type) -> dict[str, str]:
    """What stands below each field of a dataclass, as one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, below in zip(tree.body, tree.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            docs[field.target.id] = " ".join(text.split())
    return docs
