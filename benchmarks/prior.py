"""The embedded networks on combinations of colours that none was trained on: the scorer on true pictures, then samples.

    python -m benchmarks.prior --json prior.json --sheet prior.png
    python -m benchmarks.prior --folder runs/prior --captions 20 --true 256          # a minute, for a look

Held-out objects are drawn as `maquette train-prior` draws them, in parts that it never judges by. Pictures are judged
by R-precision at 1 of 100 captions, exactly and by kind of thing:

    true       the scorer on true pictures, four views each: what it says of others counts for as much as that
    samples    the first set of views that the prior draws of each caption, at the cameras that scenes open with
    chosen     of GUESSES sets the one that CLIP-G likes best, as scenes open with (`generation/opening.py`)

and without a network: hull, how well the four views agree on one silhouette hull; grain, what is left in empty corners.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from apps.priors import WEIGHTS
from benchmarks.common import HostLoad, record, table, write_json
from generation.clip import Clip
from generation.opening import Opening, drawn_sets, likeness, opening_cameras
from generation.prior_data import HELD_OUT_PART, PART, PriorData, make_part
from generation.prior_evaluation import contact_sheet, grain, hull_iou, retrieval_scores, true_pictures
from generation.prior_weights import SCORER_FILE, load_clip
from generation.trained_prior import TrainedPrior
from scene.errors import InputError

FIRST_PART = HELD_OUT_PART + 8  # no training judges itself by these
SHOWN = 60


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=WEIGHTS / "cpu", help="of weights")
    parser.add_argument("--true", type=int, default=1024, help="objects that the scorer is proven on")
    parser.add_argument("--captions", type=int, default=200, help="of which sets are drawn")
    parser.add_argument("--guesses", type=int, default=Opening().guesses, help="sets of each caption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="the chosen sets on one picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    return parser.parse_args(arguments)


def scores_of_truth(scorer: Clip, size: int, count: int) -> dict[str, float]:
    """R-precision of true pictures; the mean over parts, whose captions are each other's distractors."""
    sums: dict[str, float] = {}
    for start in range(0, count, PART):
        part = make_part(FIRST_PART + start // PART, size, 0, min(PART, count - start))
        for name, share in retrieval_scores(scorer, true_pictures(part), part, "true").items():
            sums[name] = sums.get(name, 0.0) + share * len(part)
    return {name: total / count for name, total in sums.items()}


def drawn(prior: TrainedPrior, data: PriorData, opening: Opening, seed: int) -> tuple[Tensor, Tensor]:
    """[N, V, 3, h, w] in -1..1, twice: the first set of each caption, and the one that the guide chooses."""
    if prior.guide is None:
        raise InputError("the weights have no CLIP network beside them that could choose")
    generator, first, chosen = torch.Generator().manual_seed(seed), [], []
    for number, text in enumerate(data.texts):
        sets = drawn_sets(prior, text, opening, generator)
        first.append(sets[0])
        chosen.append(sets[int(likeness(prior.guide, sets, text).argmax())])
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {len(data)} captions", file=sys.stderr, flush=True)
    return torch.stack(first), torch.stack(chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table."""
    options = parse(arguments)
    load, prior = HostLoad(), TrainedPrior.load(options.folder)
    scorer, _ = load_clip(options.folder / SCORER_FILE, "clip_scorer")
    data = make_part(FIRST_PART - 1, prior.shape[1], 0, options.captions)
    cameras = opening_cameras(prior.shape[1], prior.views)
    result: dict[str, dict[str, float]] = {"true": scores_of_truth(scorer, prior.shape[1], options.true)}
    sets = drawn(prior, data, Opening(options.guesses), options.seed)
    for name, pictures in zip(("samples", "chosen"), sets, strict=True):
        hulls = [hull_iou(views, cameras) for views in pictures]
        own = {"hull": sum(hulls) / len(hulls), "grain": grain(pictures)}
        result[name] = retrieval_scores(scorer, pictures, data, name) | own
    columns = ("pictures", "exact", "kind", "one view exact", "one view kind", "hull", "grain")
    rows = [[name, *found.values(), *[None] * (len(columns) - 1 - len(found))] for name, found in result.items()]
    print(table(columns, rows))
    facts = {name: getattr(options, name) for name in ("true", "captions", "guesses", "seed")}
    write_json(options.json, {"record": record(load) | {"folder": options.folder.name, **facts}, **result})
    if options.sheet is not None:
        Image.fromarray(contact_sheet(sets[1][:SHOWN]).numpy()).save(options.sheet, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
