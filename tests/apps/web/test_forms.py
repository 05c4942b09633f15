"""Forms made of a method's Config: every option is there with its words, and every value reaches the command line."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from apps.generate_options import GENERATORS, parse_generate
from apps.options import METHODS, parse_recon
from apps.web import forms
from scene.errors import InputError

EVERY = METHODS | GENERATORS


@pytest.mark.parametrize("method", list(EVERY))
def test_a_form_has_every_option_with_its_words(method: str) -> None:
    names = {field.name for field in dataclasses.fields(importlib.import_module(EVERY[method]).Config)}
    fields = forms.fields_of(method)
    assert {field.name for field in fields} == names - forms.HIDDEN
    assert all(len(field.help) > 5 for field in fields)
    assert forms.presets_of(method) == ("draft", "standard", "high")


@pytest.mark.parametrize("method", list(EVERY))
def test_every_default_reaches_the_command_line_as_it_is(method: str, tmp_path: Path) -> None:
    module = importlib.import_module(EVERY[method])
    config = module.Config()
    values = {field.name: getattr(config, field.name) for field in forms.fields_of(method)}
    flags = forms.as_flags(method, values)
    if method in GENERATORS:
        parsed = parse_generate(["--method", method, "--preset", "draft", *flags, "--", "a chair"]).config
    else:
        parsed = parse_recon(["--method", method, "--preset", "draft", *flags, "--", str(tmp_path)]).config
    assert parsed == config  # the preset's values were replaced by those of the form


def test_a_switch_is_set_and_taken_back(tmp_path: Path) -> None:
    for value in (True, False):
        flags = forms.as_flags("gaussians", {"antialias": value})
        assert parse_recon([*flags, "--", str(tmp_path)]).config.antialias is value


def test_what_is_left_open_keeps_the_preset() -> None:
    assert forms.as_flags("gaussians", {"steps": None, "densify": "", "max_splats": 500.0}) == ["--max-splats=500"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"out": "/tmp/x"}, "no option 'out'"),
        ({"seed": 3}, "no option 'seed'"),
        ({"setps": 3}, "did you mean 'steps'"),
        ({"steps": "3"}, "a whole number"),
        ({"steps": 3.5}, "a whole number"),
        ({"steps": True}, "a whole number"),
        ({"steps": float("inf")}, "a whole number"),
        ({"noise": float("nan")}, "a number"),
        ({"densify": "--help"}, "one of mcmc, absgrad"),
        ({"antialias": "yes"}, "true or false"),
    ],
)
def test_what_no_form_sends_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        forms.as_flags("gaussians", values)


def test_words_are_one_line_and_never_a_flag() -> None:
    assert forms.as_flags("sds", {"negative": "--out /tmp"}) == ["--negative=--out /tmp"]
    assert (
        parse_generate([*forms.as_flags("sds", {"negative": "--out /tmp"}), "--", "a chair"]).config.negative
        == "--out /tmp"
    )
    for wrong in ("a\nb", "x" * 300):
        with pytest.raises(InputError):
            forms.as_flags("sds", {"negative": wrong})


def test_a_method_that_does_not_exist_is_said() -> None:
    with pytest.raises(InputError, match="did you mean 'gaussians'"):
        forms.fields_of("gausians")
