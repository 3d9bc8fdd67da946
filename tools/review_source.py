"""Reading predictions or a data set for tools.review: images, points that can be moved, ground truth."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import Config
from reading.annotation import read_annotation, read_points
from reading.images import image_size
from reading.names import read_landmarks
from reading.paths import find_file
from reporting.predictions import PredictionTable, read_predictions
from settings import UserError, check_names, expecting, read_json, read_settings
from tools.formats.common import make_record, numbers
from tools.read_runs import implied_spacing
from tools.unannotated import find_image_files


class ReviewImage(NamedTuple):
    """One image of the page; points (x, y) original px in the order of the landmarks, None where missing."""

    path: Path
    record: dict[str, Any]  # as in data.json, with the points that can be moved
    place: int  # index of the record in the saved file
    truth: list[tuple[float, float] | None] | None = None
    score: list[float | None] | None = None
    spacing: float | None = None  # mm per px; 1 where errors are in px
    verdict: tuple[str, str] | None = None  # good, check or reject, and why
    radius: list[float | None] | None = None  # px, that holds the error in 95 % of cases


class Review(NamedTuple):
    """What one page shows."""

    title: str
    predicted: bool  # true: its points are predictions; false: they are the ground truth
    landmarks: dict[str, str]  # names by abbreviation
    images: list[ReviewImage]
    others: dict[int, dict]  # records that are saved unchanged, by their index
    folder: Path  # the folder of the images
    out: Path  # the page, unless --out is given
    unit: str = "mm"
    threshold: float = 2.0  # for the SDR in the table, in that unit
    notes: Sequence[str] = ()
    checkpoint: Path | None = None  # whose predictions these are: best.pt or last.pt of the run, or one that was tested
    config: Path | None = None  # config.json of the run that trained it


# --- Sources -----------------------------------------------------------------------------------------


def read_source(source: Path, images: Path | None, split: str | None) -> list[Review]:
    """Return the pages of a source. Raises UserError if it is neither predictions nor a data set."""
    if source.is_dir():
        sets = {file.parent.name: file for file in sorted(source.glob("*/predictions.csv"))}
        if (source / "predictions.csv").exists():
            return [read_predicted(source / "predictions.csv", images, split)]
        if sets:
            check_names([split] if split else [], sets, "test set")
            return [read_predicted(file, images, None) for name, file in sets.items() if split in (None, name)]
        if (source / "json" / "data.json").exists():
            return [read_data_set(source / "json" / "data.json", images, split)]
        raise UserError(f"{source} holds neither predictions.csv nor json/data.json; give a run or a data set")
    if not source.exists():
        raise UserError(f"{source} does not exist; give a run, its test folder, a predictions.csv, or a data set")
    read = {".csv": read_predicted, ".json": read_data_set}.get(source.suffix.lower())
    if read is None:
        raise UserError(f"{source} is neither a predictions.csv nor a data.json")
    return [read(source, images, split)]


def read_unannotated(folder: Path, landmarks: Path) -> Review:
    """Return a page of all images of a folder without any point, for the landmarks of a data.json. Raises UserError."""
    home = folder.parent if folder.name == "imgs" else folder
    if (home / "json" / "data.json").exists():
        raise UserError(f"{folder} belongs to a data set with a json/data.json; review that one, without --landmarks")
    names = read_landmarks(landmarks)
    shown = []
    for place, path in enumerate(find_image_files([str(folder)])):
        record = make_record(path.relative_to(folder).as_posix(), dict.fromkeys(names), names)
        shown.append(ReviewImage(path, record, place))
    return Review(folder.resolve().name, False, names, shown, {}, folder, folder / "review.html")


def read_data_set(file: Path, images: Path | None, split: str | None) -> Review:
    """Read a data.json; points with a score are predictions.

    Raises UserError for what main.py would refuse, except for a point outside its image, which can be corrected here.
    """
    home = file.parent.parent if file.parent.name == "json" else file.parent
    folder, content = images or home / "imgs", read_json(file)
    with expecting(file, "a data.json"):
        abbreviations, names, _ = read_annotation(file, folder)
    check_text(file, content)
    places = choose(content, split, file)
    numbered = {content[place]["imagePath"]: place + 1 for place in places}
    paths = locate_images(file, folder, {name: f"{name} of record {n}" for name, n in numbered.items()})
    shown, scored = [], False
    for place, path in zip(places, paths, strict=True):
        table = {point["pointAbbreviation"]: point.get("score") for point in content[place]["points"]}
        found = {point["pointAbbreviation"]: point.get("radius_95") for point in content[place]["points"]}
        radii = {name: found[name] for name in abbreviations}
        score = [value if is_number(value) else None for value in map(table.get, abbreviations)]
        scored = scored or any(value is not None for value in score)
        own = content[place]
        radius = [value if is_number(value) else None for value in radii.values()] if any(radii.values()) else None
        verdict = (str(own["verdict"]), str(own.get("reason", ""))) if own.get("verdict") else None
        shown.append(ReviewImage(path, own, place, score=score, verdict=verdict, radius=radius))
    if scored:
        shown = [each._replace(record=without_extras(each.record)) for each in shown]
    others = {place: record for place, record in enumerate(content) if place not in set(places)}
    title = f"{file.parent.parent.resolve().name if file.parent.name == 'json' else file.name} {split or ''}".strip()
    landmarks = dict(zip(abbreviations, names, strict=True))
    notes = note_on_ruler([image.record for image in shown], abbreviations) if scored else []
    return Review(title, scored, landmarks, shown, others, folder, home / "review.html", notes=notes)


def read_predicted(file: Path, images: Path | None, split: str | None) -> Review:
    """Read a predictions.csv; the config.json of its run states where images and data.json are. Raises UserError."""
    with expecting(file, "a predictions.csv, with the columns image,landmark,x,y,x_true,y_true,error_mm,score"):
        names, abbreviations, columns, unit = table = read_predictions(file)
        found, truth, score = table.landmarks, table.truth, columns["score"].tolist()
    run_dir = next((folder for folder in (file.parent, file.parent.parent) if (folder / "config.json").exists()), None)
    settings = run_settings(run_dir / "config.json") if run_dir else {}
    folder = images or (Path(settings["img_dir"]) if settings.get("img_dir") else None)
    if folder is None:
        raise UserError(f"{file} has no config.json beside it; give the folder of its images with --images")
    records, landmarks, notes = known_records(file, settings, abbreviations)
    paths = locate_images(file, folder, dict(zip(names, names, strict=True)))
    stated = [has_spacing(records.get(name, {})) for name in names]
    # images of one size share a spacing by ruler or setting; an image that states its own need not be opened
    sizes = [None if own or unit == "px" else image_size(path) for own, path in zip(stated, paths, strict=True)]
    spacing = image_spacings(table, sizes)
    shown = []
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        points = dict(zip(abbreviations, map(plain, found[i]), strict=True))
        record = records[name] if name in records else make_record(name, dict.fromkeys(points), landmarks)
        record = without_extras(with_points(record, points), table.extras)
        if not stated[i]:  # otherwise main.py would compute the spacing from two predicted ruler points
            record = record | {"spacing": spacing[i] if unit == "mm" else None}
            record = record if record["spacing"] else {key: record[key] for key in record if key != "spacing"}
        own = record["spacing"] if spacing[i] is None and stated[i] else spacing[i]
        true = list(map(plain, truth[i])) if np.isfinite(truth[i]).any() else None
        scores = [None if math.isnan(value) else value for value in score[i]]
        verdict, radius = table.verdicts[i] if table.verdicts else None, None
        if "radius_95" in columns and (unit == "px" or own):
            scale = own if unit == "mm" and own else 1.0
            radius = [value or None for value in np.nan_to_num(columns["radius_95"][i] / scale).tolist()]
        shown.append(ReviewImage(path, record, i, true, scores, own, verdict, radius))
    chosen = choose([image.record for image in shown], split, file)
    where = file.parent.resolve()
    title = f"{where.parent.name} {where.name}" if run_dir and run_dir != file.parent else where.name
    notes += note_on_ruler([shown[i].record for i in chosen], abbreviations)
    tested = read_json(run_dir / "config.json").get("checkpoint") if run_dir else None
    checkpoints = [Path(tested)] if isinstance(tested, str) else []
    checkpoints = checkpoints or [run_dir / name for name in ("best.pt", "last.pt") if run_dir]
    checkpoints = [path for path in checkpoints if path.exists()]
    if tested and not checkpoints:
        notes.append(f"{tested} is gone: the printed command trains a new network")
    places = [*(path.parent for path in checkpoints), *([run_dir] if run_dir else [])]  # its own run comes first
    config = next((place / "config.json" for place in places if (place / "config.json").exists()), None)
    return Review(
        title, True, landmarks, [shown[i]._replace(place=place) for place, i in enumerate(chosen)], {}, folder,
        file.parent / "review.html", unit, settings.get("sdr_thresholds", Config.sdr_thresholds)[0], notes,
        checkpoints[0] if checkpoints else None, config,
    )  # fmt: skip


def run_settings(file: Path) -> dict[str, Any]:
    """Return the settings of a run; check those that are used here. Raises UserError."""
    settings = read_settings(file)
    for name in ("img_dir", "json_path"):
        if not isinstance(settings.get(name, ""), str):
            raise UserError(f"{file}: {name} is {settings[name]!r}; expected a path")
    thresholds = numbers(settings.get("sdr_thresholds", Config.sdr_thresholds), f"{file}: sdr_thresholds")
    if not thresholds:
        raise UserError(f"{file}: sdr_thresholds is empty; give at least one number")
    return settings | {"sdr_thresholds": thresholds}


def check_text(file: Path, records: Sequence[Any]) -> None:
    """Raise UserError for a record with text that UTF-8 cannot encode."""
    for number, record in enumerate(records, 1):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end]
            raise UserError(
                f"{file}: record {number}: {half!a} in its text is half a character (a surrogate); write all of it"
            ) from None


def known_records(
    file: Path, settings: Mapping[str, Any], abbreviations: Sequence[str]
) -> tuple[dict[str, dict], dict[str, str], list[str]]:
    """Return the records of data.json by image, the landmarks' names by abbreviation, and a note if it is not usable.

    It is the data.json beside the predictions, otherwise that of the run. Of a record with other landmarks all but its
    points is taken.
    """
    places = [file.parent / "json" / "data.json", *[Path(settings[k]) for k in ("json_path",) if settings.get(k)]]
    source = next((place for place in places if place.exists()), None)
    names = {abbreviation: abbreviation for abbreviation in abbreviations}
    try:
        if source is None:
            raise UserError(f"{places[-1]} does not exist")
        content = read_json(source)
        with expecting(source, "a list of records"):
            records = {record["imagePath"]: record for record in content}
        check_text(source, content)
        tables = {name: read_points(f"{source}: image {name}", record) for name, record in records.items()}
    except UserError as error:
        return {}, names, [f"{error}: the predictions are shown without its records"]
    fitting = [name for name in records if set(tables[name]) == set(abbreviations)]
    for name in fitting[:1]:
        names |= {a: str(point.get("pointName") or "").strip() or a for a, point in tables[name].items()}
    for name in records.keys() - set(fitting):
        records[name] |= {"points": make_record(name, dict.fromkeys(names), names)["points"]}
    return records, names, []


def with_points(record: dict, points: Mapping[str, list[float] | None]) -> dict:
    """Return a record with other points, everything else unchanged."""
    moved = []
    for point in record["points"]:
        x, y = points[point["pointAbbreviation"]] or (None, None)
        moved.append(point | {"X": x, "Y": y} | ({"visible": True} if "visible" in point else {}))
    return record | {"points": moved}


def without_extras(record: dict, extras: Collection[str] = ()) -> dict:
    """Return a record without a method's figures and verdict: corrected points are ground truth.

    The figures are score, *_spread, radius_* and extras.
    """
    figure = re.compile(r"score|\w+_spread|radius_\d+")
    points = [
        {key: point[key] for key in point if not figure.fullmatch(key) and key not in extras}
        for point in record["points"]
    ]
    judged = ("verdict", "reason") if record.get("verdict") in ("good", "check", "reject") else ()
    return {key: value for key, value in record.items() if key not in judged} | {"points": points}


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def has_spacing(record: Mapping[str, Any]) -> bool:
    """Return whether a record states mm per px that main.py accepts."""
    return is_number(record.get("spacing")) and record["spacing"] > 0


def note_on_ruler(records: Sequence[Mapping[str, Any]], abbreviations: Collection[str]) -> list[str]:
    """Return a note if main.py would compute the spacing of a data set from predicted ruler points."""
    if set(Config.ruler) <= set(abbreviations) and not all(map(has_spacing, records)):
        ruler = " and ".join(Config.ruler)
        return [
            f"some images have no spacing: main.py will take it from the saved points {ruler}, {Config.ruler_mm:g} mm "
            "apart; check these points, or set --spacing"
        ]
    return []


def image_spacings(table: PredictionTable, sizes: Sequence[tuple[int, int] | None]) -> list[float | None]:
    """Return mm per px of each image, as the report used it; 1 if errors are in px.

    Images of one size that agree get their median, in six digits, because the file rounds errors and points. An image
    without an error gets the spacing of its size, otherwise that of all; None if these do not agree.
    """
    if table.unit == "px":
        return [1.0] * len(table.names)
    values, slack = implied_spacing(table)
    slack = slack + 1e-3 * values
    result = np.where(np.isfinite(values), values, common_spacing(values, slack))
    for size in set(sizes) - {None}:
        alike = np.array([other == size for other in sizes])
        if np.isfinite(values[alike]).any():
            median = np.nanmedian(values[alike])
            result[alike & (np.abs(values - median) <= slack)] = median
            result[alike & np.isnan(values)] = common_spacing(values[alike], slack[alike])
    return [None if math.isnan(value) else float(f"{value:.6g}") for value in result]


def common_spacing(values: np.ndarray, slack: np.ndarray) -> float:
    """Return the median if no value differs from it by more than its slack, otherwise nan; nan values are ignored."""
    if not np.isfinite(values).any():
        return math.nan
    median = float(np.nanmedian(values))
    return math.nan if (np.abs(values - median) > slack).any() else median


def plain(point: np.ndarray) -> list[float] | None:
    """Return a point as plain numbers, None for nan."""
    return [float(value) for value in point] if np.isfinite(point).all() else None


def choose(records: Sequence[Mapping[str, Any]], split: str | None, file: Path) -> list[int]:
    """Return the indices of the records of a split, or of all. Raises UserError if there are none."""
    known = dict.fromkeys(str(record["split"]) for record in records if record.get("split"))
    if split and not known:
        raise UserError(f"{file}: its records have no split; leave out --split")
    check_names([split] if split else [], known, f"split in {file}:")
    return [place for place, record in enumerate(records) if split in (None, record.get("split"))]


def locate_images(file: Path, folder: Path, images: Mapping[str, str]) -> list[Path]:
    """Return the files of images in a folder, found as main.py finds them; images: descriptions for messages, by name.

    Raises UserError that names the first image that is absent.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of the images with --images")
    paths = {name: find_file(folder, name) for name in images}
    absent = [where for name, where in images.items() if paths[name] is None]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        are = "are" if more else "is"
        raise UserError(
            f"{file}: {absent[0]}{more} {are} not in {folder}; name each with its ending and its subfolder, or give "
            "the folder of the images with --images"
        )
    return [path for path in paths.values() if path is not None]
