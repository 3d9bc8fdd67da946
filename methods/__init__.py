"""The methods by name: the one place to add a rival, which is one file here and one line below."""

from pathlib import Path
from typing import Any

from config import Config, UserError, build_config, check_names
from detector import LandmarkDetector
from methods.noothout import Noothout
from methods.posenet import PoseNet
from methods.unet import UNet
from model import FARNet
from run_folder import read_checkpoint, seen_images

METHODS: dict[str, type[LandmarkDetector]] = {
    "farnet": FARNet, "unet": UNet, "noothout": Noothout, "posenet": PoseNet,
}  # fmt: skip


def method_class(name: str) -> type[LandmarkDetector]:
    """The method of a name. Raises UserError that lists the names."""
    check_names([name], METHODS, "method")
    return METHODS[name]


def create_detector(config: Config) -> LandmarkDetector:
    """A new detector with initial weights, by config.method."""
    return method_class(config.method)(config)


def load_detector(checkpoint: str | Path | dict[str, Any]) -> tuple[LandmarkDetector, dict[str, Any]]:
    """A detector with the weights and settings of a checkpoint, on the CPU in eval mode, and the checkpoint.

    checkpoint: a file, or what read_checkpoint returned. Raises UserError if it does not fit this repository.
    """
    state = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint)
    cls = method_class(state["method"])
    config = build_config(cls.Config, state["settings"])
    detector = cls(config.bare())
    detector.config = config
    detector.seen = seen_images(state)
    try:
        detector.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint's weights do not fit its settings: {str(error).splitlines()[1].strip()}"
        ) from None
    return detector.eval(), state
