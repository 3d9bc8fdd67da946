"""Start a training from the weights of another run (setting start_from); landmarks are matched by abbreviation."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import Config
from detector import LandmarkDetector
from methods import create_detector
from reading.names import match_landmarks
from run_folder import load_weights, read_checkpoint, seen_images
from settings import UserError

log = logging.getLogger("farnet")

STRUCTURE = ("method", "norm")  # settings in which both runs have to agree
WEIGHTS = ("backbone", "decoder_channels")  # settings that change the weights of some methods


def read_start(config: Config) -> dict[str, Any]:
    """Return the checkpoint of config.start_from, a file or a run folder; {} if it is None.

    Its weights are named as those of config: a second stage (setting refine) is added to the names, or left out.
    Raises UserError for a folder without checkpoints, another method or another norm.
    """
    if config.start_from is None:
        return {}
    path = Path(config.start_from)
    if path.is_dir():
        files = [path / name for name in ("best.pt", "last.pt") if (path / name).exists()]
        if not files:
            raise UserError(f"setting start_from: {path} has no best.pt or last.pt; give the folder of a trained run")
        path = files[0]
    state = read_checkpoint(path)
    for name in STRUCTURE:
        theirs, own = state["settings"].get(name), getattr(config, name)
        if theirs != own:
            raise UserError(f"setting start_from: {path} was trained with {name} {theirs}, not {own}")
    two, wanted = state["settings"].get("refine", 1) > 1, config.refine > 1
    if two and not wanted:
        first = {name.removeprefix("first."): w for name, w in state["model"].items() if name.startswith("first.")}
        return state | {"model": first}
    if wanted and not two:
        return state | {"model": {f"first.{name}": weight for name, weight in state["model"].items()}}
    return state


def start_detector(config: Config, abbreviations: Sequence[str], state: Mapping[str, Any]) -> LandmarkDetector:
    """Return a detector for landmarks that starts with the weights of a checkpoint (read_start); logs what it takes.

    Of the weights that belong to landmarks it takes those of the landmarks that both have; the rest is new, and has
    initial weights. A part of the network that only one of both has, such as a second stage, is new or left out.
    Raises UserError for weights that do not fit, and where a part that is frozen would be new or see other images.
    """
    theirs, weights = state["abbreviations"], state["model"]
    matches = match_landmarks(abbreviations, theirs, config.start_names)
    frozen, settings = config.kept_from_start(), config.to_dict()
    if odd := [name for name in frozen if state["settings"].get(name) != settings[name]]:
        difference = f"{odd[0]} {state['settings'].get(odd[0])}, not {settings[odd[0]]}"
        raise UserError(f"setting start_from: {state['path']} was trained with {difference}")
    if "crop" in frozen and len(matches) < len(abbreviations):
        lacking = ", ".join(name for n, name in enumerate(abbreviations) if n not in matches)
        raise UserError(f"setting start_from: {state['path']} does not find {lacking}, and is not trained further")
    axes = landmark_axes(config)
    own_parts, their_parts = {part_of(name) for name in axes}, {part_of(name) for name in weights}
    shared = [name for name in {**axes, **weights} if part_of(name) in own_parts & their_parts]
    for name in shared:
        expected = name in axes and tuple(constant + each * len(theirs) for constant, each in axes[name])
        found = name in weights and tuple(weights[name].shape)
        if found is False or expected is False or found != expected:
            raise misfit(config, state, f"{name} is {found or 'absent'}, here it is {expected or 'absent'}")
    new = own_parts - their_parts
    detector = create_detector(config if new else config.without_pretrained())
    detector.config = config
    counts, initial = (len(abbreviations), len(theirs)), detector.state_dict()
    started = {
        name: take_rows(initial[name], weights[name], axes[name], matches, counts, detector.kinds(name))
        for name in shared
    }
    load_weights(state["path"], detector, initial | started)
    detector.seen = seen_images(state)
    log_start(state, abbreviations, matches, {"new": new, "left out": their_parts - own_parts})
    return detector


def part_of(name: str) -> str:
    """Return the part of a network that a weight belongs to, such as network.coarse_head or discriminators.P."""
    return ".".join(name.split(".")[: 3 if name.startswith(("first.", "second.")) else 2])


def landmark_axes(config: Config) -> dict[str, list[tuple[int, int]]]:
    """Return by the name of each weight, for each axis, its length without landmarks, and what each landmark adds."""
    with torch.device("meta"):
        one, two = (
            create_detector(config.without_pretrained().replace(num_landmarks=count)).state_dict() for count in (1, 2)
        )
    return {
        name: [(2 * a - b, b - a) for a, b in zip(weight.shape, two[name].shape, strict=True)]
        for name, weight in one.items()
    }


def take_rows(
    new: Tensor,
    old: Tensor,
    axes: Sequence[tuple[int, int]],
    matches: Mapping[int, int],
    counts: tuple[int, int],
    kinds: int,
) -> Tensor:
    """Return a weight with what another one has of the matched landmarks, and of all that belongs to none.

    axes: as in landmark_axes; counts: of landmarks in both. An axis begins with what belongs to no landmark; then come
    the landmarks, one after another, and all of them once per kind.
    """
    places: list[tuple[np.ndarray, ...]] = [(), ()]
    for constant, each in axes:
        block = each // kinds
        for side, rows in enumerate((list(matches), list(matches.values()))):
            starts = np.arange(kinds)[:, None] * counts[side] + np.array(rows, int)
            own = (starts[..., None] * block + np.arange(block)).ravel() + constant
            places[side] += (np.concatenate([np.arange(constant), own]),)
    result = new.clone()
    result[np.ix_(*places[0])] = old[np.ix_(*places[1])]
    return result


def misfit(config: Config, state: Mapping[str, Any], difference: str) -> UserError:
    """Return the error of a checkpoint whose weights do not fit, with the settings that may be why."""
    theirs, own = state["settings"], config.to_dict()
    names = [name for name in (*WEIGHTS, *config.fixed_by_weights) if name not in ("num_landmarks", "refine")]
    odd = [f"{name} {theirs[name]}, not {own[name]}" for name in names if theirs.get(name, own[name]) != own[name]]
    why = f"was trained with {'; '.join(odd)}" if odd else "does not fit"
    return UserError(f"setting start_from: {state['path']} {why}: {difference}")


def log_start(
    state: Mapping[str, Any], abbreviations: Sequence[str], matches: Mapping[int, int], parts: Mapping[str, set[str]]
) -> None:
    """Log which landmarks of a checkpoint are kept, which are new and which are left out, and which parts of it."""
    theirs = state["abbreviations"]
    pairs = {n: (abbreviations[n], theirs[other]) for n, other in matches.items()}
    lists = {
        "kept": [own if own == other else f"{own} (there {other})" for own, other in pairs.values()],
        "new": [name for n, name in enumerate(abbreviations) if n not in matches],
        "left out": [name for n, name in enumerate(theirs) if n not in matches.values()],
    }
    log.info("starting from %s, epoch %d, with %d landmarks", state["path"], state["epoch"], len(theirs))
    for what, names in lists.items():
        if names:
            log.info("%d landmarks %s: %s", len(names), what, ", ".join(names))
    for what, changed in parts.items():
        if changed:
            log.info("parts of the network %s: %s", what, ", ".join(sorted(changed)))
