"""The methods by name. To add a method, write one file in this folder and add one line below."""

from collections.abc import Mapping
from typing import Any

from config import Config
from detector import LandmarkDetector
from methods.noothout import Noothout
from methods.posenet import PoseNet
from methods.refined import RefinedDetector, first_config
from methods.unet import UNet
from model import FARNet
from run_folder import load_weights, seen_images
from settings import UserError, build_config, check_names

METHODS: dict[str, type[LandmarkDetector]] = {
    "farnet": FARNet, "unet": UNet, "noothout": Noothout, "posenet": PoseNet,
}  # fmt: skip


def method_class(name: str) -> type[LandmarkDetector]:
    """Return the class of a method. Raises UserError that lists the names."""
    check_names([name], METHODS, "method")
    return METHODS[name]


def create_detector(config: Config) -> LandmarkDetector:
    """Return a new detector of config.method with initial weights, and with a second stage if config.refine asks."""
    cls = method_class(config.method)
    return cls(config) if config.refine == 1 else RefinedDetector(config, cls(first_config(config)))


def trained_config(state: Mapping[str, Any]) -> Config:
    """Return the settings of a checkpoint (run_folder.read_checkpoint). Raises UserError, which names the file."""
    where = f"checkpoint {state['path']}: "
    try:
        config = build_config(method_class(state["method"]).Config, state["settings"])
    except UserError as error:
        raise UserError(where + str(error)) from None
    if config.method != state["method"]:
        raise UserError(
            f"{where}its weights are of {state['method']}, its settings of {config.method}; use another one"
        )
    return config


def load_detector(state: Mapping[str, Any], config: Config | None = None) -> LandmarkDetector:
    """Return a detector with the weights of a checkpoint (run_folder.read_checkpoint), on the CPU in eval mode.

    config: its settings; none: those of the checkpoint. Raises UserError if the weights do not fit.
    """
    trained = trained_config(state)
    detector = create_detector(trained.without_pretrained())
    detector.config = config or trained
    detector.name_landmarks(state["abbreviations"])
    detector.seen = seen_images(state)
    load_weights(state["path"], detector, state["model"])
    return detector.eval()
