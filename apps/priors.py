"""Which prior a prompt gets: embedded weights that are good and know the words, the bank, or what --prior says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from apps.generate_options import EMBEDDED
from generation.bank_prior import BankConfig, BankPrior
from generation.captions import parse
from generation.clip import Clip
from generation.prior_weights import GUIDE_FILE, PRIOR_FILE, SCORER_FILE, load_clip, load_prior_network
from generation.priors import Prior
from generation.trained_prior import TrainedPrior, tokens_of
from scene.errors import InputError

WEIGHTS = Path(__file__).resolve().parents[1] / "data" / "priors"
PROVEN = {"sample_exact": 0.75, "sample_kind": 0.92}
"""Of samples of held-out captions: the right one of 100 captions, the right kind of thing."""
OTHER = (
    "for other words give --prior FOLDER|HUB_ID, such as a Stable Diffusion in the layout of diffusers "
    "(--allow-download fetches it)"
)


@dataclass(frozen=True)
class ChosenPrior:
    """A prior, its name for config.json, and what a report says of it."""

    prior: Prior
    name: str
    sentence: str
    facts: dict[str, Any]


def choose_prior(
    wanted: str,
    prompt: str,
    negative: str | None,
    *,
    pictured: bool,
    pixels: int,
    members: int,
    seed: int,
    device: torch.device,
    allow_download: bool,
) -> ChosenPrior:
    """The prior for a prompt, and a picture where one comes with it (pictured).

    Raises InputError, in one line, where none knows it or it cannot be loaded.
    """
    said = [prompt, *([negative] if negative else [])]
    if wanted not in EMBEDDED:
        return _other(wanted, said, pictured, device, allow_download)
    try:
        captions = [parse(text).text() for text in said]
    except InputError as error:
        raise InputError(f"{error}; {OTHER}") from error
    file = embedded_file(PRIOR_FILE)
    if wanted == "trained" and file is None:
        raise InputError(
            f"--prior trained: there is no {PRIOR_FILE} in {WEIGHTS}; make one with maquette train-prior and name its "
            "folder with --prior"
        )
    if file is not None and wanted != "bank" and (wanted == "trained" or (_proven(file) and _knows(said))):
        return _trained(file.parent, "trained", said, pictured, device)
    prior = BankPrior(said, BankConfig(size=pixels, members=members, seed=seed), device)
    sentence = f"The bank prior stands for the words: {members} procedural objects of {captions[0]!r}, no weights."
    facts = {"model": "bank", "objects": members, "caption": captions[0], "picture_size": pixels, "views": prior.views}
    return ChosenPrior(prior, "bank", sentence, {**facts, "process": prior.process})


def embedded_file(name: str) -> Path | None:
    """The largest file of weights of this name that comes with Maquette, or None."""
    folders = [WEIGHTS, *sorted(path for path in WEIGHTS.glob("*") if path.is_dir())]
    files = [folder / name for folder in folders if (folder / name).is_file()]
    return max(files, key=lambda file: file.stat().st_size, default=None)


def embedded_clip(kind: Literal["clip_guide", "clip_scorer"]) -> Clip | None:
    """The network that guides, or the one that only judges, whether a prior comes beside it or not; None without."""
    file = embedded_file({"clip_guide": GUIDE_FILE, "clip_scorer": SCORER_FILE}[kind])
    return None if file is None else load_clip(file, kind)[0]


def _proven(file: Path) -> bool:
    """Whether weights came close enough to true pictures, by their own header, to be taken before the bank."""
    scores = load_prior_network(file)[1].metrics
    return all(scores.get(name, 0.0) >= least for name, least in PROVEN.items())


def _knows(texts: list[str]) -> bool:
    try:
        for text in texts:
            tokens_of(text)
    except InputError:
        return False
    return True


def _trained(folder: Path, name: str, said: list[str], pictured: bool, device: torch.device) -> ChosenPrior:
    prior = TrainedPrior.load(folder, device=device)
    for text in said:
        tokens_of(text)  # raises
    if pictured and prior.guide is None:
        raise InputError(f"the prior of {folder} has no {GUIDE_FILE} beside it, without which it takes no --image")
    about = prior.about
    assert about is not None
    facts = {"model": "trained", "folder": str(folder), "commit": about.commit, "data_seed": about.data_seed}
    facts |= {"picture_size": prior.shape[1], "views": prior.views, "process": prior.process, **about.metrics}
    sentence = f"The trained prior of {folder} knows the words ({prior.views} views of {prior.shape[1]} pixels)."
    return ChosenPrior(prior, name, sentence, facts)


def _other(wanted: str, said: list[str], pictured: bool, device: torch.device, allow_download: bool) -> ChosenPrior:
    """A folder of our own weights, or a pipeline of diffusers by folder or hub id."""
    if (Path(wanted) / PRIOR_FILE).exists() or Path(wanted).name == PRIOR_FILE:
        return _trained(Path(wanted), wanted, said, pictured, device)
    if pictured:
        raise InputError(f"--prior {wanted} takes words, not pictures; leave out --image or choose another --prior")
    from generation.diffusers_prior import load_prior

    prior = load_prior(wanted, allow_download=allow_download, device=device)
    facts = dict(prior.describe())
    sentence = (
        f"The prior is {facts['model']} ({facts['kind']}), revision {facts['revision']}, licence {facts['licence']}."
    )
    return ChosenPrior(prior, wanted, sentence, facts)
