"""The data set of a run: checked records (annotation.py) and their splits for training, validation and testing."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import Config
from reading.annotation import Record, read_annotation, read_images, read_spacing, read_split, shorten
from reading.groups import group_records
from settings import UserError, check_names, read_json

log = logging.getLogger("farnet")


@dataclass(frozen=True)
class LandmarkData:
    """A checked data set: its landmarks, its records, and the indices of the records in each split."""

    abbreviations: tuple[str, ...]
    names: tuple[str, ...]
    records: tuple[Record, ...]
    splits: dict[str, tuple[int, ...]]

    def select(self, split: str) -> list[Record]:
        """Return the records of a split; [] if there is no such split."""
        return [self.records[index] for index in self.splits.get(split, ())]

    @property
    def test_sets(self) -> list[str]:
        """The names of the splits other than train and val."""
        return [split for split in self.splits if split not in ("train", "val")]

    def landmark_box(self, split: str) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of the box of a split's landmarks, as fractions of their images' sizes."""
        places = np.concatenate([(record.landmarks + 0.5) / record.size for record in self.select(split)])
        return (*np.nanmin(places, 0).tolist(), *np.nanmax(places, 0).tolist())

    @property
    def unit(self) -> str:
        """The unit of errors: mm if the spacing is known, else px."""
        return "px" if any(math.isnan(record.spacing) for record in self.records) else "mm"


def read_split_file(path: Path) -> dict[str, list[str]]:
    """Return the names of the images in each split from a run's split.json. Raises UserError for another content."""
    splits = read_json(path, "restore the split.json of the run")
    lists = splits.values() if isinstance(splits, dict) else [None]
    for split in splits if isinstance(splits, dict) else ():
        read_split(str(path), split)  # main.py makes folders with these names
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise UserError(f"{path} must hold lists of image names by split; restore the split.json of the run")
    return splits


def load_data(
    config: Config,
    abbreviations: Sequence[str] | None = None,
    splits: dict[str, list[str]] | None = None,
    seen: Mapping[str, str] | None = None,
    for_training: bool = True,
    before: Mapping[str, str] | None = None,
) -> LandmarkData:
    """Return the data set in config.img_dir and config.json_path, checked. Raises UserError.

    abbreviations: the landmarks and their order, where a checkpoint fixes them; else those of the file.
    splits: image names per split, where a run fixes them; else the records' own, else drawn.
    seen: to test a checkpoint, the split of each image it has seen, by fingerprint. If the records name no splits, all
    other images form the test set.
    before: the split of each image in the run that a training starts from, by fingerprint, which a drawn split keeps.
    """
    json_path, img_dir = config.json_path, config.img_dir
    abbreviations, names, records = read_annotation(json_path, img_dir, config.num_landmarks, abbreviations)
    for setting in ("report_exclude", "ruler", "explain_landmarks"):
        # data without a ruler lacks the landmarks that a setting names by default
        given = [name for name in getattr(config, setting) if name not in getattr(Config, setting)]
        check_names(given, abbreviations, "landmark", f"setting {setting}: ")
    group_records(config.report_by, records)  # so that a slip ends here, not after the training
    records = read_spacing(config, abbreviations, read_images(json_path, img_dir, abbreviations, records))
    named = {record.name: index for index, record in enumerate(records)}
    if splits is None:
        indices = split_records(config, records, seen, before or {})
    else:
        missing = [name for members in splits.values() for name in members if name not in named]
        if missing:
            raise UserError(f"{config.json_path}: image {missing[0]!r} of the run's split.json has no record any more")
        known = {name for members in splits.values() for name in members}
        new = [record.name for record in records if record.name not in known]
        if config.folds:  # test sets that the records name belong to no fold
            new = [name for name in new if records[named[name]].split in (None, "train", "val")]
        if new:
            raise UserError(
                f"{config.json_path}: {len(new)} records are not in the run's split.json: {shorten(new, 20)}; take "
                "them out, or use them in a new run, which can start from this one (start_from)"
            )
        indices = {split: [named[name] for name in members] for split, members in splits.items()}
    data = LandmarkData(abbreviations, names, tuple(records), {k: tuple(v) for k, v in indices.items()})
    check_splits(config, data, seen or {}, for_training)
    return data


def split_records(
    config: Config, records: Sequence[Record], seen: Mapping[str, str] | None, before: Mapping[str, str]
) -> dict[str, list[int]]:
    """Return the indices of the records per split: their own, or as a checkpoint has `seen` them, or drawn.

    Drawn splits keep the images of a patient together, and images in the split that they had `before`. Images with
    equal pixels count as one patient.
    Raises UserError if only some records name a split.
    """
    everything = list(range(len(records)))
    if config.split == "same":
        log.warning("split same: the test images are the training images; the figures are a sanity check, not a result")
        return {"train": everything, "test": everything}
    if config.folds:
        return split_fold(config, records, seen)
    if any(record.split for record in records):
        without = [record.name for record in records if not record.split]
        if without:
            raise UserError(f"{config.json_path}: image {without[0]} names no split, others do; name it in all or none")
        named = group_indices([str(record.split) for record in records])
        if seen is None and "val" not in named and config.val_fraction > 0 and len(named.get("train", ())) > 1:
            drawn = draw_groups(records, named["train"], {"val": config.val_fraction}, config.seed, before)
            named |= {"train": drawn["train"], "val": drawn["val"]}
        return named
    if seen is not None:
        return group_indices([seen.get(record.fingerprint, "test") for record in records])

    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    splits = draw_groups(records, everything, fractions, config.seed, before)
    return {split: splits[split] for split in ("train", "val", "test") if splits.get(split) or split == "train"}


def draw_groups(
    records: Sequence[Record],
    members: Sequence[int],
    fractions: Mapping[str, float],
    seed: int,
    before: Mapping[str, str],
) -> dict[str, list[int]]:
    """Deal some records (members) to splits by their fractions, the rest to "train"; patients stay together.

    An image that was in a split `before`, by its fingerprint, stays there with its patient: any test set is "test". If
    all were in test sets, none of them stays.
    """
    earlier = [before.get(records[index].fingerprint) for index in members]
    if all(split not in (None, "train", "val") for split in earlier):
        before = {}
    groups = group_patients(records, members, seed)
    kept: dict[str, list[int]] = {split: [] for split in (*fractions, "train")}
    for group in list(groups):
        old = [before.get(records[index].fingerprint) for index in group]
        known = {split if split in ("train", "val") else "test" for split in old if split}
        known = {split for split in known if split == "train" or fractions.get(split)}
        if known:
            kept[next(split for split in ("train", "val", "test") if split in known)] += group
            groups.remove(group)
    members = [index for group in groups for index in group]
    splits: dict[str, list[int]] = {}
    for split, fraction in fractions.items():
        if fraction == 0:
            continue
        chosen: list[int] = []
        wanted = max(0 if kept[split] else 1, round(fraction * len(members)))
        # groups that fit, in the drawn order; if none fits, the smallest
        for candidates in list(groups):
            if len(chosen) + len(candidates) <= wanted:
                chosen += candidates
                groups.remove(candidates)
        if not chosen and groups and wanted:
            chosen = min(groups, key=len)
            groups.remove(chosen)
        splits[split] = sorted(chosen + kept[split])
    if staying := sum(map(len, kept.values())):
        log.info("%d images stay in the split that they had in the run of start_from, with their patients", staying)
    return splits | {"train": sorted([*kept["train"], *(index for rest in groups for index in rest)])}


def split_fold(config: Config, records: Sequence[Record], seen: Mapping[str, str] | None) -> dict[str, list[int]]:
    """Return the indices of train, val and test in a fold of a cross-validation; patients stay together.

    If records name splits, those in train and val are dealt to the folds, and named test sets are left out.
    Raises UserError if there are fewer patients than folds.
    """
    fixed = {None: "test", "train": "test", "val": "test"}  # images new to a checkpoint, where records name splits
    if seen is not None:
        known = [seen.get(record.fingerprint) if record.split in fixed else None for record in records]
        if any(known):  # the checkpoint's own data: records outside the folds stay out
            return {split: members for split, members in group_indices(known).items() if split is not None}
        return group_indices([fixed.get(record.split, record.split) for record in records])
    members = [index for index, record in enumerate(records) if record.split in fixed]
    groups = group_patients(records, members, config.seed)
    if len(groups) < config.folds:
        raise UserError(
            f"setting folds: {config.json_path} has {len(groups)} patients to deal to {config.folds} folds; lower folds"
        )
    folds: list[list[int]] = [[] for _ in range(config.folds)]
    for group in groups:
        min(folds, key=len).extend(group)
    test = sorted(folds[config.fold - 1])
    rest = [index for index in members if index not in set(test)]
    drawn = draw_groups(records, rest, {"val": config.val_fraction}, config.seed, {})
    return {split: drawn[split] for split in ("train", "val") if split in drawn} | {"test": test}


def group_patients(records: Sequence[Record], members: Sequence[int], seed: int) -> list[list[int]]:
    """Group records (members) that share a patient or have equal pixels; the groups are in an order drawn by seed."""
    group = {index: index for index in members}  # the first record of its group
    for key in ("patient", "fingerprint"):
        first: dict[str, int] = {}
        for index in members:
            value = getattr(records[index], key)
            if value is not None:
                old, new = group[index], group[first.setdefault(value, index)]
                group = {i: new if g == old else g for i, g in group.items()}
    order = np.random.default_rng(seed).permutation(sorted(set(group.values())))
    return [[index for index in members if group[index] == leader] for leader in order]


def group_indices(splits: Sequence[Any]) -> dict[Any, list[int]]:
    """Return the indices per split from the split of each record."""
    indices: dict[str, list[int]] = {}
    for index, split in enumerate(splits):
        indices.setdefault(split, []).append(index)
    return indices


def check_splits(config: Config, data: LandmarkData, trained: Mapping[str, str], for_training: bool) -> None:
    """Refuse splits without training images; warn of equal images in two splits and of test images `trained` on."""
    sizes = ", ".join(f"{split} {len(members)}" for split, members in data.splits.items())
    log.info("%d images, %d landmarks: %s", len(data.records), len(data.abbreviations), sizes)
    if for_training and not data.splits.get("train"):
        raise UserError(
            f"{config.json_path}: the split leaves no training image ({sizes}); add records, lower "
            "val_fraction and test_fraction, or set split to same for a sanity check"
        )
    for split in filter(data.splits.get, data.splits):
        points = np.array([record.landmarks for record in data.select(split)])  # (I, N, 2)
        absent = [name for n, name in enumerate(data.abbreviations) if np.isnan(points[:, n]).any(-1).all()]
        if for_training and split == "train" and len(absent) == len(data.abbreviations):
            raise UserError(f"{config.json_path}: no training image has a point; X and Y are null or visible is false")
        if len(absent) == len(data.abbreviations):
            log.warning("no image of %s has a point: there is nothing to measure on it", split)
        elif for_training and split == "train" and absent:
            log.warning("no training image has the landmark %s: it cannot be learned", shorten(absent))
    if config.split == "same":
        return
    for test_set in data.test_sets:
        known = [r.name for r in data.select(test_set) if trained.get(r.fingerprint, "test") in ("train", "val")]
        if known:
            log.warning("the checkpoint was trained on %d images of %s: %s", len(known), test_set, shorten(known))
    first: dict[str, tuple[str, str]] = {}
    for split, members in data.splits.items():
        for record in (data.records[index] for index in members):
            other = first.setdefault(record.fingerprint, (split, record.name))
            if other[0] != split:
                log.warning("equal images in two splits: %s (%s) and %s (%s)", other[1], other[0], record.name, split)
