"""Every setting of a run, its default and its unit; presets; and how a file or the command line changes them.

Later wins: defaults < --preset A B ... (left to right) < --config FILE.json < --<setting> VALUE.
The defaults are the recipe of the FARNet paper; what departs from it is a preset or a setting of its own.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


class UserError(Exception):
    """A mistake in a file, a record or a setting; main.py prints it as one line and exits with status 2."""


# What a preset says is only what differs from the defaults. A method adds its own in `Config.presets`.
PRESETS: dict[str, dict[str, Any]] = {
    # a few minutes on a laptop CPU, on the bundled phantoms
    "demo": dict(
        backbone_weights="none", norm="batch", height=192, width=160, sigma=2.5, decode="subpixel",
        epochs=30, batch_size=4, lr=1e-3, lr_schedule="cosine", warmup_epochs=1, precision="auto", channels_last=True,
        rotation=8.0, scaling=0.08, shift=0.04, intensity=0.2, save_every=10,
    ),
    # ISBI 2014/2015 cephalograms: 19 landmarks, no ruler in the picture, 0.1 mm/px by convention
    "isbi2015": dict(num_landmarks=19, spacing=0.1, report_exclude=(), val_fraction=0.0),
    # Digital Hand Atlas: 37 landmarks at 512 x 512 as in the paper; spacing comes with the records
    "hand": dict(num_landmarks=37, height=512, width=512, spacing=None, report_exclude=()),
    # AASCE 2019 spines: 68 landmarks, tall pictures, no spacing
    "spine": dict(
        num_landmarks=68, height=1024, width=512, spacing=None, report_exclude=(), measurements="spine",
        sdr_thresholds=(10.0, 20.0, 40.0),
    ),
    # CL-Detection 2023 and 2024, Aariz (CEPHA29): spacing comes with the records
    "cl2023": dict(num_landmarks=38, spacing=None, report_exclude=()),
    "cl2024": dict(num_landmarks=53, spacing=None, report_exclude=()),
    "aariz": dict(num_landmarks=29, spacing=None, report_exclude=()),
    # radiographs of legs: six landmarks, padded to a square; 0.143 mm/px of the original files
    "legs": dict(
        num_landmarks=6, height=256, width=256, keep_aspect=True, spacing=0.143, report_exclude=(),
        sdr_thresholds=(2.0, 4.0, 10.0, 20.0),
    ),
    # what the field has learned since 2021, each a setting of its own
    "modern": dict(
        crop_margin=0.05, rotation=8.0, scaling=0.12, shift=0.04, elastic=0.005, intensity=0.3, blur=1.0, cutout=0.25,
        decode="subpixel", norm="batch", batch_size=4, optimizer="adamw", weight_decay=0.01, lr=7e-4,
        lr_schedule="cosine", warmup_epochs=2, ema=0.995, precision="auto", test_precision="auto", channels_last=True,
        views=5, cache_gb=4.0,
    ),
    # after modern, for a CPU: half the size, random weights, small batches of which each image has its own norm
    "cpu": dict(
        backbone_weights="none", height=384, width=320, sigma=5.0, norm="instance", channels_last=False, batch_size=2,
        lr=5e-4, warmup_epochs=1, epochs=30, workers=1, save_every=10,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """All settings of a run; frozen, flat, checked on construction.

    Raises UserError in one line for a value that is mistyped or impossible.
    """

    method: str = "farnet"  # a name in methods.METHODS

    # Data
    img_dir: str = "CustomDataSet/imgs"  # folder of images
    json_path: str = "CustomDataSet/json/data.json"  # annotation, in original px
    num_landmarks: int = 52  # landmarks per image
    split: str = "auto"  # auto: the records' own, else drawn; same: every image trains and tests (a sanity check)
    val_fraction: float = 0.1  # share of the patients; of those of train, where records or folds name one without val
    test_fraction: float = 0.2  # share of the patients, where the records name no split
    spacing: float | str | None = "ruler"  # mm per original px, "ruler", or none (errors in px)
    ruler: tuple[str, ...] = ("R1", "R2")  # abbreviations of the two ruler points
    ruler_mm: float = 10.0  # mm between the two ruler points
    report_exclude: tuple[str, ...] = ("R1", "R2")  # abbreviations left out of the headline figures
    measurements: str = "auto"  # of the landmarks: cephalogram (auto: where they are its), spine, or none
    sdr_thresholds: tuple[float, ...] = (2.0, 2.5, 3.0, 4.0)  # mm (px where the spacing is unknown)

    # Input
    height: int = 800  # network px, a multiple of 32
    width: int = 640  # network px, a multiple of 32
    crop: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom of what is seen, in image widths, heights
    keep_aspect: bool = False  # fit the crop into the input as it is, what lies beside it filling up; false: stretch it
    crop_margin: float | None = None  # crop to where the training landmarks lie and this fraction of the image around
    rotation: float = 0.0  # augmentation: up to +- this many degrees
    scaling: float = 0.0  # augmentation: up to +- this fraction
    shift: float = 0.0  # augmentation: up to +- this fraction of the crop's sides
    elastic: float = 0.0  # augmentation: smooth displacement, standard deviation as a fraction of the image width
    intensity: float = 0.0  # augmentation: strength of gamma, contrast, brightness and noise, 0 (off) to 1
    blur: float = 0.0  # augmentation: Gaussian blur of up to this standard deviation, network px
    cutout: float = 0.0  # augmentation: half of the images lose a rectangle of up to this fraction of each side

    # Network, labels and decoding
    backbone: str = "densenet121"  # a name in backbone.BACKBONES
    backbone_weights: str = "imagenet"  # imagenet, none, or a file with a torchvision state dict
    norm: str = "instance"  # batch norm by the statistics of the batch, or of each image (what batch size 1 means)
    sigma: float = 10.0  # standard deviation of the heatmaps, network px
    ewc_alpha: float = 40.0  # weight at the peak of a landmark; 1 is the mean squared error
    decode: str = "argmax"  # argmax or subpixel
    compose_heads: bool = True  # a head's two convolutions as one, 1x1 before upsampling; false: as in the paper
    device_targets: bool = True  # heatmaps from two profiles, on the device; false: dense float64 grids on the host

    # Training
    epochs: int = 300  # passes over the training images
    batch_size: int = 1  # images per step
    accumulate: int = 1  # parts that a batch is computed in, one after another: less memory
    lr: float = 1e-4  # learning rate of Adam
    lr_schedule: str = "step"  # step: x0.1 at each milestone; cosine: down to 0 at the last epoch
    lr_milestones: tuple[int, ...] = (200,)  # epochs, for lr_schedule step
    warmup_epochs: int = 0  # epochs of linear rise to lr
    optimizer: str = "adam"  # adam, adamw (decoupled weight decay) or rmsprop
    weight_decay: float = 0.0  # of adamw
    ema: float = 0.0  # decay per step of the moving average of the weights that is tested; 0: the weights themselves
    precision: str = "fp32"  # fp32, bf16 (mixed, loss in fp32), or auto: bf16 where the device is fast at it
    channels_last: bool = False  # memory layout; changes speed, not results
    fused_optimizer: bool = True  # one kernel for all parameters; false: one by one
    compile: bool = False  # torch.compile: minutes before the first step, then maybe faster
    seed: int = 0  # of the split, the initial weights, the order and the augmentation

    # Testing
    views: int = 1  # predictions averaged over this many slightly turned, scaled and shifted views of an image
    test_precision: str = "fp32"  # fp32, bf16 or auto, as for precision
    fold_norms: bool = True  # test with batch norms folded into convolutions and heads composed once: only rounding
    folds: int = 0  # cross-validation: this many runs, each tested on its part of the images
    fold: int = 0  # 1 to folds: this one alone, as a plain run; 0: all, and a pooled report

    # Machine
    device: str = "auto"  # auto (CUDA if there is one), cpu, cuda, cuda:1, ...
    workers: int = 2  # loader processes; 0 loads in the main process
    cache_gb: float = 0.0  # GB of RAM, in each process of a run, for decoded training images
    keep_memory: bool = True  # Linux, CPU: keep freed memory for the next step; false: give it back to the system
    deterministic: bool = False  # CUDA: bit-equal repeats, slower (a CPU is always so)

    # Output
    run_dir: str | None = None  # none: runs/<method>-<time>; must not exist yet
    save_every: int = 1  # epochs between two last.pt (about 740 MB with the optimiser's state)
    watch_every: int = 10  # epochs between two pictures of the first validation (or training) image; 0: none
    gif: bool = False  # an animation of these pictures
    overlays: int = 12  # pictures per test set, from the best image to the worst
    explain: int = 0  # likewise, of what the last convolution saw of each landmark (gradient-weighted activation maps)
    explain_landmarks: tuple[str, ...] = ()  # abbreviations of the landmarks to explain; none: all

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    of_the_weights: ClassVar[tuple[str, ...]] = ("method", "num_landmarks")  # other weights, or none, once they change

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = check_value(field.name, getattr(self, field.name), setting_types(type(self))[field.name])
            object.__setattr__(self, field.name, value)
        check_combinations(self)

    def demand(self, holds: bool, name: str, allowed: str) -> None:
        """Raise UserError, which names a setting and what is allowed, unless something holds."""
        if not holds:
            raise UserError(f"setting {name}: {getattr(self, name)!r} is not allowed; {allowed}")

    def replace(self, **settings: Any) -> "Config":
        """The same settings with some replaced."""
        return dataclasses.replace(self, **settings)

    def bare(self) -> "Config":
        """The same settings without files of first weights, for a detector whose weights follow from a checkpoint."""
        return self.replace(backbone_weights="none")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, as they stand in config.json and in a checkpoint."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def setting_types(config_class: type[Config]) -> dict[str, Any]:
    """The settings of a method in their order, with their types."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def check_value(name: str, value: Any, hint: Any) -> Any:
    """The value if it has the setting's type (an int passes for a float, a list for a tuple).

    Raises UserError that names the setting and what is allowed.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is types.NoneType:
            if value is None:
                return None
        elif typing.get_origin(option) is tuple:
            if isinstance(value, list | tuple):
                return tuple(check_value(name, item, typing.get_args(option)[0]) for item in value)
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                if value != value or abs(value) == float("inf"):
                    raise UserError(f"setting {name}: {value} is not a finite number")
                return float(value)
        elif isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    raise UserError(f"setting {name}: {value!r} is not {type_words(hint)}")


def type_words(hint: Any) -> str:
    """A setting's type in words, for messages."""
    if isinstance(hint, types.UnionType):
        return " or ".join(type_words(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        items = {int: "whole numbers", float: "numbers", str: "names"}[typing.get_args(hint)[0]]
        return f"a list of {items} (comma-separated on the command line)"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}[hint]


def parse_text(name: str, text: str, hint: Any) -> Any:
    """A setting's value from its text on the command line: 0.1, true, none, or a,b,c for a list.

    Raises UserError that names the setting and what is allowed.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in options and text.lower() in ("none", "null"):
        return None
    for option in options:
        if typing.get_origin(option) is tuple:
            items = [] if text.lower() in ("", "none") else [item.strip() for item in text.split(",")]
            return tuple(parse_text(name, item, typing.get_args(option)[0]) for item in items)
        if option is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
            return text.lower() in ("true", "yes", "1")
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
        if option is str:
            return text
    raise UserError(f"setting {name}: {text!r} is not {type_words(hint)}")


def check_combinations(config: Config) -> None:
    """Refuse what has the right type and cannot work. Raises UserError."""
    demand = config.demand
    for name in ("height", "width"):
        size = getattr(config, name)
        near = max(64, round(size / 32) * 32)  # at 32 px, batch norm would see a single value per channel
        demand(size >= 64 and size % 32 == 0, name, f"it must be a multiple of 32 from 64 on, e.g. {near}")
    for name in ("num_landmarks", "epochs", "batch_size", "accumulate", "save_every", "views"):
        demand(getattr(config, name) >= 1, name, "it must be at least 1")
    for name in ("sigma", "ewc_alpha", "lr", "ruler_mm"):
        demand(getattr(config, name) > 0, name, "it must be above 0")
    for name in (
        "rotation",
        "scaling",
        "shift",
        "intensity",
        "workers",
        "warmup_epochs",
        "overlays",
        "explain",
        "watch_every",
        "seed",
        "elastic",
        "blur",
        "cutout",
        "weight_decay",
        "ema",
        "cache_gb",
        "folds",
        "fold",
    ):
        demand(getattr(config, name) >= 0, name, "it must be 0 or above")
    for name in ("scaling", "shift", "intensity", "elastic", "cutout", "ema"):
        demand(getattr(config, name) <= 1, name, "it must be a fraction, at most 1")
    for name in ("val_fraction", "test_fraction"):
        demand(0 <= getattr(config, name) < 1, name, "it must be at least 0 and below 1")
    pictures = 0 < config.watch_every <= config.epochs
    demand(pictures or not config.gif, "gif", "there are no pictures to animate; set watch_every to at most epochs")
    demand(config.folds != 1, "folds", "it must be 0 (no cross-validation) or at least 2")
    demand(config.fold <= config.folds, "fold", f"it must be at most folds, {config.folds}")
    demand(not (config.folds and config.split == "same"), "folds", "split same tests on the training images")
    demand(config.crop_margin is None or config.crop_margin >= 0, "crop_margin", "it must be none, or 0 or above")
    demand(len(config.crop) == 4, "crop", "give left, top, right and bottom, e.g. 0,0,1,1 for the whole image")
    left, top, right, bottom = config.crop
    demand(left < right and top < bottom, "crop", "left must be below right and top below bottom")
    landmarks = config.explain_landmarks
    demand(len(set(landmarks)) == len(landmarks), "explain_landmarks", "a landmark stands twice")
    demand(config.ema < 1, "ema", "it must be below 1, e.g. 0.99")
    demand(config.val_fraction + config.test_fraction < 1, "test_fraction", "with val_fraction it must leave images")
    choices = {
        "measurements": ("auto", "none", "cephalogram", "spine"),
        "split": ("auto", "same"), "norm": ("batch", "instance"), "optimizer": ("adam", "adamw", "rmsprop"),
        "decode": ("argmax", "subpixel"), "lr_schedule": ("step", "cosine"), "precision": ("fp32", "bf16", "auto"),
        "test_precision": ("fp32", "bf16", "auto"),
    }  # fmt: skip
    for name, allowed in choices.items():
        demand(getattr(config, name) in allowed, name, f"choose one of {', '.join(allowed)}")
    if isinstance(config.spacing, str):
        demand(config.spacing == "ruler", "spacing", "give mm per px, ruler, or none")
        demand(len(config.ruler) == 2, "ruler", "spacing ruler needs the abbreviations of two points, e.g. R1,R2")
    elif config.spacing is not None:
        demand(config.spacing > 0, "spacing", "mm per px must be above 0")
    demand(bool(config.sdr_thresholds) and min(config.sdr_thresholds) > 0, "sdr_thresholds", "give one or more above 0")


def check_names(names: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Refuse names that are not among those allowed. Raises UserError with the nearest one and all."""
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"there is no {what} {name!r}; {hint}known: {', '.join(allowed)}")


def preset_settings(config_class: type[Config], presets: Iterable[str]) -> dict[str, Any]:
    """What the named presets set for a method, later ones winning. Raises UserError for an unknown preset."""
    tables = [cls.__dict__["presets"] for cls in reversed(config_class.__mro__) if "presets" in cls.__dict__]
    settings: dict[str, Any] = {}
    for preset in presets:
        check_names([preset], {name: None for table in tables for name in table}, "preset")
        for table in tables:
            settings |= table.get(preset, {})
    return settings


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a JSON file, such as a run's config.json. Raises UserError if it holds none."""
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the settings in {path}: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f'{path} must hold a JSON object of settings, e.g. {{"epochs": 300}}')
    return settings.get("settings", settings)


def build_config(config_class: type[Config], settings: Mapping[str, Any]) -> Config:
    """A method's Config from a dict. Raises UserError for an unknown name or a value that is not allowed."""
    check_names(settings, setting_types(config_class), "setting")
    return config_class(**settings)
