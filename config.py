"""Every setting of a run: edit the values here, or give them on the command line as --<setting> VALUE.

A preset (below) wins over this file, a --config file wins over a preset, and the command line wins over all of them.
main.py prints which of your edits a preset replaces. The defaults are the recipe of the FARNet paper. settings.py reads
and checks the settings.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from settings import Settings, UserError  # noqa: F401 (programs of users catch config.UserError)


@dataclass(frozen=True)
class Config(Settings):
    """All settings of a run: frozen, flat, checked on construction. px means network pixels, except in "original px".

    Raises UserError for a value of the wrong type or one that cannot work.
    """

    # Your data
    img_dir: str = "CustomDataSet/imgs"  # folder of the images
    json_path: str = "CustomDataSet/json/data.json"  # file of the annotation, points in original px
    num_landmarks: int | None = None  # landmarks per image, 1 or above: checked against the data | none: from the data
    spacing: float | str | None = "ruler"  # mm per original px | ruler: from two annotated points | none: errors in px
    ruler: tuple[str, ...] = ("R1", "R2")  # abbreviations of the two ruler points, for spacing ruler
    ruler_mm: float = 10.0  # distance between the two ruler points, mm, above 0
    report_exclude: tuple[str, ...] = ("R1", "R2")  # abbreviations left out of the headline figures | none
    split: str = "auto"  # auto: from the records, or drawn | same: train and test on all images (a sanity check)
    val_fraction: float = 0.1  # share of the patients for validation, 0 to below 1 (of train's, if records name no val)
    test_fraction: float = 0.2  # share of the patients for testing, 0 to below 1, if the records name no split

    # Your run
    method: str = "farnet"  # farnet | unet | noothout | posenet
    run_dir: str | None = None  # new folder for the run | none: runs/<method>-<time>
    epochs: int = 300  # passes over the training images, 1 or above; 0 with start_from: only test it
    start_from: str | None = None  # a run or its best.pt: begin with its weights, landmarks by abbreviation | none: new
    start_names: tuple[str, ...] = ()  # OWN=THEIRS where that run calls a landmark otherwise, e.g. Pn=Ns | none
    patience: int = 0  # stop after this many epochs without a lower validation MRE | 0: never
    seed: int = 0  # 0 or above; seeds the drawn split, initial weights, order of images and augmentation
    folds: int = 0  # cross-validation: 2 or more runs, each tested on its own part of the images | 0: off
    fold: int = 0  # run only this fold, 1 to folds | 0: run all of them and pool their reports

    # Input and augmentation
    height: int = 800  # height of the network input, px: a multiple of 32, 64 or above
    width: int = 640  # width of the network input, px: a multiple of 32, 64 or above
    crop: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom of the input as fractions of the image
    crop_margin: float | None = None  # crop to the landmarks' box plus this fraction of the image per side | none: crop
    crop_follows: bool = False  # true: a box per image, margin a fraction of it; a test first looks in all of crop
    keep_aspect: bool = False  # true: keep the aspect ratio, fill up with the surroundings of the crop | false: stretch
    rotation: float = 0.0  # augmentation: rotate by up to +- this many degrees, 0 or above
    scaling: float = 0.0  # augmentation: scale by up to +- this fraction, 0 to 1
    shift: float = 0.0  # augmentation: shift by up to +- this fraction of the crop's sides, 0 to 1
    elastic: float = 0.0  # augmentation: smooth displacement; standard deviation as a fraction of the width, 0 to 1
    intensity: float = 0.0  # augmentation: strength of gamma, contrast, brightness and noise, 0 to 1
    blur: float = 0.0  # augmentation: Gaussian blur of up to this standard deviation, px, 0 or above
    cutout: float = 0.0  # augmentation: half of the images lose a rectangle of up to this fraction of each side, 0 to 1

    # Network, labels and decoding
    backbone: str = "densenet121"  # densenet121 | resnet101 | vgg16 | efficientnet_lite0 | ...: docs/training.md
    backbone_weights: str = "imagenet"  # imagenet: published ones | none: random | a file with a state dict
    decoder_channels: int = 256  # of FARNet's decoder, a multiple of 8: as in the paper; fewer are faster
    norm: str = "instance"  # batch | instance: statistics of the batch or of each image
    sigma: float = 10.0  # standard deviation of the target heatmaps, px, above 0
    refine: int = 1  # 2 to 4: the network sees 1/refine of height and width; a second stage, crops of them | 1: off
    ewc_alpha: float = 40.0  # weight of the loss at a heatmap's peak, above 0; 1: mean squared error
    decode: str = "argmax"  # argmax: the highest pixel | subpixel: a Gaussian fitted around it

    # Optimiser
    batch_size: int = 1  # images per step, 1 or above
    accumulate: int = 1  # compute a batch in this many parts, one after another, to save memory; 1 or above
    lr: float = 1e-4  # learning rate, above 0
    lr_schedule: str = "step"  # step: x0.1 at each milestone | cosine: down to 0 at the last epoch
    lr_milestones: tuple[int, ...] = (200,)  # epochs after which lr_schedule step takes effect
    warmup_epochs: int = 0  # epochs in which lr rises linearly, 0 or above
    optimizer: str = "adam"  # adam | adamw: decoupled weight decay | rmsprop
    weight_decay: float = 0.0  # of adamw, 0 or above
    ema: float = 0.0  # decay per step, below 1, of an exponential moving average of the weights to test | 0: off
    precision: str = "fp32"  # of training: fp32 | bf16: mixed, loss in fp32 | auto: bf16 if the device is fast at it

    # Testing and output
    views: int = 1  # average the predictions of this many slightly transformed views of an image; 1: the image alone
    test_precision: str = "fp32"  # of testing: fp32 | bf16 | auto, as in precision
    sdr_thresholds: tuple[float, ...] = (2.0, 2.5, 3.0, 4.0)  # mm (original px if spacing is unknown), above 0
    measurements: str = "auto"  # angles and distances: auto: if the landmarks allow it | cephalogram | spine | none
    report_by: tuple[str, ...] = ()  # keys of the records: figures of each group, e.g. gender,age:12,18 | none
    overlays: int = 12  # pictures per test set, spread from the best image to the worst, 0 or above
    circles: bool = False  # in overlays, draw around each landmark the circle that holds its error in 95 of 100 cases
    explain: int = 0  # images per test set with Grad-CAM pictures, 0 or above
    explain_landmarks: tuple[str, ...] = ()  # abbreviations of the landmarks to explain | none: all
    watch_every: int = 10  # epochs between pictures of the first validation (else training) image | 0: none
    save_every: int = 1  # epochs between two last.pt, 1 or above (about 740 MB, replaced each time)

    # Machine
    device: str = "auto"  # auto: CUDA if there is a GPU | cpu | cuda | cuda:1 ...
    workers: int = 2  # processes that load images | 0: load them in the main process
    cache_gb: float = 0.0  # GB of memory for decoded training images in each process of a run, 0 or above
    channels_last: bool = False  # memory layout of tensors, true or false; affects the speed only
    deterministic: bool = False  # true: repeats are bit-equal on CUDA too, slower (a CPU always repeats exactly)

    # settings that a checkpoint cannot change
    fixed_by_weights: ClassVar[tuple[str, ...]] = ("method", "num_landmarks", "refine", "crop_follows")

    def without_pretrained(self) -> "Config":
        """Return the same settings without files of initial weights, for a detector whose weights are loaded."""
        return self.replace(backbone_weights="none")

    def kept_from_start(self) -> tuple[str, ...]:
        """Return the names of further settings in which a run has to agree with that of start_from."""
        return ()

    def check(self) -> None:
        """Refuse values that have the right type but cannot work. Raises UserError."""
        require = self.require
        require(1 <= self.refine <= 4, "refine", "it must be 1 to 4")
        for name in ("height", "width"):
            size = getattr(self, name)
            step = 32 * self.refine
            least = 2 * step  # at 32 px, batch norm would see one value per channel
            note = f"it must be a multiple of {step} from {least} on, e.g. {max(least, round(size / step) * step)}"
            require(size >= least and size % step == 0, name, note)
        require(self.num_landmarks is None or self.num_landmarks >= 1, "num_landmarks", "it must be none or at least 1")
        for name in AT_LEAST_1:
            require(getattr(self, name) >= 1, name, "it must be at least 1")
        least = 1 if self.start_from is None else 0
        require(self.epochs >= least, "epochs", f"it must be at least {least}")
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
        require(not self.crop_follows or self.crop_margin is not None, "crop_follows", "set crop_margin too, e.g. 0.1")
        require(len(self.crop) == 4, "crop", "give left, top, right and bottom, e.g. 0,0,1,1 for the whole image")
        left, top, right, bottom = self.crop
        require(left < right and top < bottom, "crop", "left must be below right and top below bottom")
        landmarks = self.explain_landmarks
        require(len(set(landmarks)) == len(landmarks), "explain_landmarks", "a landmark appears twice")
        require(self.decoder_channels % 8 == 0 < self.decoder_channels, "decoder_channels", "give a multiple of 8")
        require(self.ema < 1, "ema", "it must be below 1, e.g. 0.99")
        if isinstance(self.spacing, str):
            require(self.spacing == "ruler", "spacing", "give mm per px with a decimal point, ruler, or none")
            require(len(self.ruler) == 2, "ruler", "spacing ruler needs the abbreviations of two points, e.g. R1,R2")
        elif self.spacing is not None:
            low, high = SPACINGS
            require(low <= self.spacing <= high, "spacing", f"it must be {low:g} to {high:g} mm per px")
        thresholds = self.sdr_thresholds
        require(0 < len(thresholds) <= 20, "sdr_thresholds", "give 1 to 20 of them")
        require(
            0 < min(thresholds) and max(thresholds) <= 1e5, "sdr_thresholds", "each must be above 0, at most 100000"
        )
        self.limit(**AT_MOST)


# --- Presets: --preset NAME replaces some of the values above. A method adds its own in Config.presets. ---

PRESETS: dict[str, dict[str, Any]] = {
    # a few minutes on a laptop CPU, on the bundled phantoms
    "demo": dict(
        backbone_weights="none", norm="batch", height=192, width=160, sigma=2.5, decode="subpixel",
        epochs=30, batch_size=4, lr=1e-3, lr_milestones=(), warmup_epochs=1, precision="auto",
        channels_last=True, rotation=8.0, scaling=0.08, shift=0.04, intensity=0.2, save_every=10,
    ),
    # improvements published since 2021; each is a setting of its own
    "modern": dict(
        crop_follows=True, crop_margin=0.1, rotation=8.0, scaling=0.12, shift=0.04, elastic=0.005, intensity=0.3,
        blur=1.0, cutout=0.25, decode="subpixel", norm="batch", batch_size=4, optimizer="adamw", weight_decay=0.01,
        lr=7e-4, lr_schedule="cosine", warmup_epochs=2, ema=0.995, precision="auto", test_precision="auto",
        channels_last=True, views=5, cache_gb=4.0,
    ),
    # to follow modern on a CPU: a small pretrained backbone at half the size, a second stage, small batches
    "cpu": dict(
        backbone="efficientnet_lite0", decoder_channels=128, height=640, width=576, refine=2, sigma=5.0,
        intensity=0.1, norm="instance", channels_last=False, batch_size=2, lr=5e-4, lr_schedule="step",
        lr_milestones=(), warmup_epochs=1, epochs=32, workers=1, save_every=10,
    ),
    # ISBI 2014/2015 cephalograms: 19 landmarks, no ruler in the image, 0.1 mm/px by convention
    "isbi2015": dict(num_landmarks=19, spacing=0.1, report_exclude=(), val_fraction=0.0),
    # Digital Hand Atlas: 37 landmarks, 512 x 512 px as in the paper; the records have a spacing
    "hand": dict(num_landmarks=37, height=512, width=512, spacing=None, report_exclude=()),
    # AASCE 2019 spines: 68 landmarks, tall images, no spacing
    "spine": dict(
        num_landmarks=68, height=1024, width=512, spacing=None, report_exclude=(), measurements="spine",
        sdr_thresholds=(10.0, 20.0, 40.0),
    ),
    # CL-Detection 2023 and 2024, Aariz (CEPHA29): the records have a spacing
    "cl2023": dict(num_landmarks=38, spacing=None, report_exclude=()),
    "cl2024": dict(num_landmarks=53, spacing=None, report_exclude=()),
    "aariz": dict(num_landmarks=29, spacing=None, report_exclude=()),
    # radiographs of legs: 6 landmarks, padded to a square; 0.143 mm per px of the original files
    "legs": dict(
        num_landmarks=6, height=256, width=256, keep_aspect=True, spacing=0.143, report_exclude=(),
        sdr_thresholds=(2.0, 4.0, 10.0, 20.0),
    ),
}  # fmt: skip
Config.presets = PRESETS

# --- Allowed values ------------------------------------------------------------------------------

CHOICES = {
    "measurements": ("auto", "none", "cephalogram", "spine"),
    "split": ("auto", "same"), "norm": ("batch", "instance"), "optimizer": ("adam", "adamw", "rmsprop"),
    "decode": ("argmax", "subpixel"), "lr_schedule": ("step", "cosine"), "precision": ("fp32", "bf16", "auto"),
    "test_precision": ("fp32", "bf16", "auto"),
}  # fmt: skip
AT_LEAST_1 = ("batch_size", "accumulate", "save_every", "views")
ABOVE_0 = ("sigma", "ewc_alpha", "lr", "ruler_mm")
AT_LEAST_0 = (
    "rotation", "workers", "warmup_epochs", "patience", "overlays", "explain", "watch_every", "seed", "blur",
    "weight_decay", "cache_gb", "folds", "fold",
)  # fmt: skip
# far beyond what anybody needs: a value above is a slip, and would only fail hours later, or fill the memory
AT_MOST = {
    "num_landmarks": 10_000, "epochs": 1_000_000, "folds": 1000, "height": 8192, "width": 8192, "rotation": 360,
    "blur": 100, "sigma": 1000, "ewc_alpha": 1_000_000, "batch_size": 10_000, "accumulate": 10_000, "lr": 1000,
    "weight_decay": 1000, "crop_margin": 10, "ruler_mm": 10_000, "views": 100, "workers": 256, "cache_gb": 100_000,
    "decoder_channels": 4096,
}  # fmt: skip
SPACINGS = (1e-4, 100.0)  # mm per px, from a microscope to far beyond a radiograph
FRACTIONS = ("scaling", "shift", "intensity", "elastic", "cutout", "ema")
