"""Every setting of a run: edit the values here, or give them on the command line as --<setting> VALUE.

A preset (below) wins over this file, a --config file wins over a preset, the command line wins over all; main.py prints
which of your edits a preset replaces. The defaults are the recipe of the FARNet paper. How settings are read and
checked: settings.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from settings import Settings


@dataclass(frozen=True)
class Config(Settings):
    """All settings of a run; frozen, flat, checked on construction. px: network pixels unless "original" is said.

    Raises UserError in one line for a value of the wrong type or one that cannot work.
    """

    # Your data
    img_dir: str = "CustomDataSet/imgs"  # folder of images
    json_path: str = "CustomDataSet/json/data.json"  # annotation, points in original px
    num_landmarks: int | None = None  # landmarks per image; none: as many as the data has; a number is checked
    spacing: float | str | None = "ruler"  # mm per original px | ruler: from two annotated points | none: errors in px
    ruler: tuple[str, ...] = ("R1", "R2")  # abbreviations of the two ruler points, for spacing ruler
    ruler_mm: float = 10.0  # distance of the two ruler points, mm
    report_exclude: tuple[str, ...] = ("R1", "R2")  # abbreviations left out of the headline figures; none: no landmark
    split: str = "auto"  # auto: the records' own, else drawn | same: every image trains and tests (a sanity check)
    val_fraction: float = 0.1  # share of patients for validation (of the train split, if records name one but no val)
    test_fraction: float = 0.2  # share of patients for testing, if the records name no split

    # Your run
    method: str = "farnet"  # farnet | unet | noothout | posenet
    run_dir: str | None = None  # a new folder for the run; none: runs/<method>-<time>
    epochs: int = 300  # passes over the training images
    seed: int = 0  # of the drawn split, the initial weights, the order of images and the augmentation
    folds: int = 0  # cross-validation: number of runs, each tested on its own part of the images; 0: off
    fold: int = 0  # which fold to run alone, 1 to folds; 0: all of them, and a pooled report

    # Input and augmentation
    height: int = 800  # of the network input, px, a multiple of 32 from 64
    width: int = 640  # of the network input, px, a multiple of 32 from 64
    crop: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom of the input, in image widths and heights
    crop_margin: float | None = None  # crop to the box of the training landmarks plus this fraction; none: see crop
    keep_aspect: bool = False  # true: keep the aspect ratio, filling up with what surrounds the crop | false: stretch
    rotation: float = 0.0  # augmentation: up to +- this many degrees
    scaling: float = 0.0  # augmentation: up to +- this fraction, 0 to 1
    shift: float = 0.0  # augmentation: up to +- this fraction of the sides of the crop, 0 to 1
    elastic: float = 0.0  # augmentation: smooth displacement, standard deviation as a fraction of the width, 0 to 1
    intensity: float = 0.0  # augmentation: strength of gamma, contrast, brightness and noise, 0 (off) to 1
    blur: float = 0.0  # augmentation: Gaussian blur of up to this standard deviation, px
    cutout: float = 0.0  # augmentation: half of the images lose a rectangle of up to this fraction of each side, 0 to 1

    # Network, labels and decoding
    backbone: str = "densenet121"  # densenet121 | densenet169 | resnet101 | vgg16 | vgg19 | ...; docs/training.md
    backbone_weights: str = "imagenet"  # imagenet: downloaded | none: random | a file with a torchvision state dict
    norm: str = "instance"  # batch | instance: statistics of the batch or of each image
    sigma: float = 10.0  # standard deviation of the target heatmaps, px
    ewc_alpha: float = 40.0  # weight of the loss at the peak of a target heatmap; 1: mean squared error
    decode: str = "argmax"  # argmax: the highest pixel | subpixel: a Gaussian fitted around it

    # Optimiser
    batch_size: int = 1  # images per step
    accumulate: int = 1  # parts that a batch is computed in, one after another, to save memory
    lr: float = 1e-4  # learning rate
    lr_schedule: str = "step"  # step: x0.1 at each milestone | cosine: down to 0 at the last epoch
    lr_milestones: tuple[int, ...] = (200,)  # epochs, for lr_schedule step
    warmup_epochs: int = 0  # epochs of linear rise to lr
    optimizer: str = "adam"  # adam | adamw: decoupled weight decay | rmsprop
    weight_decay: float = 0.0  # of adamw
    ema: float = 0.0  # decay per step of an exponential moving average of the weights, which is then tested; 0: off
    precision: str = "fp32"  # of training: fp32 | bf16: mixed, loss in fp32 | auto: bf16 where the device is fast at it

    # Testing and output
    views: int = 1  # predictions averaged over this many slightly turned, scaled and shifted views of each image
    test_precision: str = "fp32"  # of testing: fp32 | bf16 | auto, as for precision
    sdr_thresholds: tuple[float, ...] = (2.0, 2.5, 3.0, 4.0)  # mm, or px where the spacing is unknown
    measurements: str = "auto"  # angles and distances: auto: if the landmarks allow | cephalogram | spine | none
    overlays: int = 12  # pictures per test set, spread from the best image to the worst
    explain: int = 0  # images per test set for which Grad-CAM pictures are drawn
    explain_landmarks: tuple[str, ...] = ()  # abbreviations of the landmarks to explain; none: all
    watch_every: int = 10  # epochs between two pictures of the first validation (or training) image; 0: none
    save_every: int = 1  # epochs between two last.pt (about 740 MB each with the optimiser's state, replaced)

    # Machine
    device: str = "auto"  # auto: CUDA if there is one | cpu | cuda | cuda:1 ...
    workers: int = 2  # processes that load images; 0: load in the main process
    cache_gb: float = 0.0  # GB of memory for decoded training images, in each process of a run
    channels_last: bool = False  # memory layout; changes the speed, not the results
    deterministic: bool = False  # CUDA: bit-equal repeats, slower (a CPU always repeats exactly)

    fixed_by_weights: ClassVar[tuple[str, ...]] = ("method", "num_landmarks")  # settings a checkpoint cannot change

    def without_pretrained(self) -> "Config":
        """Return the same settings without files of initial weights, for a detector whose weights are loaded."""
        return self.replace(backbone_weights="none")

    def check(self) -> None:
        """Refuse values that have the right type but cannot work. Raises UserError."""
        require = self.require
        for name in ("height", "width"):
            size = getattr(self, name)
            near = max(64, round(size / 32) * 32)  # at 32 px, batch norm would see a single value per channel
            require(size >= 64 and size % 32 == 0, name, f"it must be a multiple of 32 from 64 on, e.g. {near}")
        require(self.num_landmarks is None or self.num_landmarks >= 1, "num_landmarks", "it must be none or at least 1")
        for name in AT_LEAST_1:
            require(getattr(self, name) >= 1, name, "it must be at least 1")
        for name in ABOVE_0:
            require(getattr(self, name) > 0, name, "it must be above 0")
        for name in AT_LEAST_0:
            require(getattr(self, name) >= 0, name, "it must be 0 or above")
        for name in FRACTIONS:
            require(0 <= getattr(self, name) <= 1, name, "it must be a fraction from 0 to 1")
        for name in ("val_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, name, "it must be at least 0 and below 1")
        for name, allowed in CHOICES.items():
            require(getattr(self, name) in allowed, name, f"choose one of {', '.join(allowed)}")
        require(self.val_fraction + self.test_fraction < 1, "test_fraction", "with val_fraction it must leave images")
        require(self.folds != 1, "folds", "it must be 0 (no cross-validation) or at least 2")
        require(self.fold <= self.folds, "fold", f"it must be at most folds, {self.folds}")
        require(not (self.folds and self.split == "same"), "folds", "split same tests on the training images")
        require(self.crop_margin is None or self.crop_margin >= 0, "crop_margin", "it must be none, or 0 or above")
        require(len(self.crop) == 4, "crop", "give left, top, right and bottom, e.g. 0,0,1,1 for the whole image")
        left, top, right, bottom = self.crop
        require(left < right and top < bottom, "crop", "left must be below right and top below bottom")
        landmarks = self.explain_landmarks
        require(len(set(landmarks)) == len(landmarks), "explain_landmarks", "a landmark appears twice")
        require(self.ema < 1, "ema", "it must be below 1, e.g. 0.99")
        if isinstance(self.spacing, str):
            require(self.spacing == "ruler", "spacing", "give mm per px with a decimal point, ruler, or none")
            require(len(self.ruler) == 2, "ruler", "spacing ruler needs the abbreviations of two points, e.g. R1,R2")
        elif self.spacing is not None:
            require(self.spacing > 0, "spacing", "mm per px must be above 0")
        thresholds = self.sdr_thresholds
        require(bool(thresholds) and min(thresholds) > 0, "sdr_thresholds", "give one or more above 0")


# --- Presets: --preset NAME sets what differs from the values above. A method adds its own in Config.presets. ---

PRESETS: dict[str, dict[str, Any]] = {
    # a few minutes on a laptop CPU, on the bundled phantoms
    "demo": dict(
        backbone_weights="none", norm="batch", height=192, width=160, sigma=2.5, decode="subpixel",
        epochs=30, batch_size=4, lr=1e-3, lr_schedule="cosine", warmup_epochs=1, precision="auto", channels_last=True,
        rotation=8.0, scaling=0.08, shift=0.04, intensity=0.2, save_every=10,
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
}  # fmt: skip
Config.presets = PRESETS

# --- Allowed values ------------------------------------------------------------------------------

CHOICES: Mapping[str, tuple[str, ...]] = {
    "measurements": ("auto", "none", "cephalogram", "spine"),
    "split": ("auto", "same"), "norm": ("batch", "instance"), "optimizer": ("adam", "adamw", "rmsprop"),
    "decode": ("argmax", "subpixel"), "lr_schedule": ("step", "cosine"), "precision": ("fp32", "bf16", "auto"),
    "test_precision": ("fp32", "bf16", "auto"),
}  # fmt: skip
AT_LEAST_1 = ("epochs", "batch_size", "accumulate", "save_every", "views")
ABOVE_0 = ("sigma", "ewc_alpha", "lr", "ruler_mm")
AT_LEAST_0 = (
    "rotation", "workers", "warmup_epochs", "overlays", "explain", "watch_every", "seed", "blur", "weight_decay",
    "cache_gb", "folds", "fold",
)  # fmt: skip
FRACTIONS = ("scaling", "shift", "intensity", "elastic", "cutout", "ema")
