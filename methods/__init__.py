"""The methods by name. To add a method, write one file in this folder and add one line below."""

from collections.abc import Mapping
from typing import Any

from config import Config
from detector import LandmarkDetector
from methods.noothout import Noothout
from methods.posenet import PoseNet
from methods.unet import UNet
from model import FARNet
from run_folder import seen_images
from settings import UserError, build_config, check_names

METHODS: dict[str, type[LandmarkDetector]] = {
    "farnet": FARNet, "unet": UNet, "noothout": Noothout, "posenet": PoseNet,
}  # fmt: skip


def method_class(name: str) -> type[LandmarkDetector]:
    """Return the class of a method. Raises UserError that lists the names."""
    check_names([name], METHODS, "method")
    return METHODS[name]


def create_detector(config: Config) -> LandmarkDetector:
    """Return a new detector of config.method with initial weights."""
    return method_class(config.method)(config)


def load_detector(state: Mapping[str, Any], config: Config | None = None) -> LandmarkDetector:
    """Return a detector with the weights of a checkpoint (run_folder.read_checkpoint), on the CPU in eval mode.

    config: its settings; none: those of the checkpoint. Raises UserError if the weights do not fit.
    """
    cls = method_class(state["method"])
    trained = build_config(cls.Config, state["settings"])
    detector = cls(trained.without_pretrained())
    detector.config = config or trained
    detector.seen = seen_images(state)
    try:
        detector.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"the checkpoint's weights do not fit its settings: {reason}") from None
    return detector.eval()
