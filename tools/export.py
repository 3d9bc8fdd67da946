"""Export a trained network as one file for other programs: image in, landmarks in px of the image and scores out.

    python -m tools.export CHECKPOINT [--format onnx|torchscript] [--out FILE] [--images IMAGES...]

Feed "image", (batch, height, width) uint8 grey: the pixels of a file, of any size, neither resized nor normalised. Turn
them as the EXIF orientation says, make colour images grey and stretch deeper ones (16 bit, DICOM) from their
minimum..maximum to 0..255. read_input of this module does all that; PIL.Image.open(FILE).convert("L") alone suffices
for upright 8-bit files only. You get "landmarks", (batch, landmark, 2) x, y in px of that image with pixel centres at
integers, and "scores", (batch, landmark).

    session = onnxruntime.InferenceSession("best.onnx")
    landmarks, scores = session.run(None, {"image": __import__("tools.export").export.read_input(FILE)})

The graph resizes, normalises, predicts in float32 and decodes; where the crop follows the landmarks it looks twice, as
a test does; views are not averaged. Its landmarks are compared with those of this repository on images (--images; else
those of the checkpoint's data set), one by one and in a batch. The file is written only if no landmark differs by more
than 0.05 px. It contains the abbreviations of the landmarks in their order under the name "landmarks": in the ONNX
metadata, or as an extra file of TorchScript.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import timeit
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from config import Config
from machine import exit_status
from methods import trained_config
from reading.images import read_image
from run_folder import read_checkpoint, source_commit, write_bytes
from settings import Parser, UserError
from tools.export_graph import ImageToLandmarks
from tools.predict import Predictor
from tools.unannotated import find_image_files, make_views

FORMATS = {"onnx": ".onnx", "torchscript": ".torchscript.pt"}
TOLERANCE = 0.05  # px of the image
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # images (B, h, w) -> landmarks, scores


# --- Exporting ------------------------------------------------------------------------------------------


def export_onnx(graph: ImageToLandmarks, example: torch.Tensor, about: dict[str, str]) -> tuple[bytes, Predict]:
    """Return an ONNX file with metadata, and its function. Raises UserError if a package is not installed."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f"format onnx needs {error.name}: pip install onnx onnxruntime onnxscript") from None
    shapes = {"image": {0: "batch", 1: "height", 2: "width"}}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph, (example,), dynamo=True, dynamic_shapes=shapes, input_names=["image"],
            output_names=["landmarks", "scores"], external_data=False,
        )  # fmt: skip
    program.model.metadata_props.update(about)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: tuple(session.run(None, {"image": images}))


def export_torchscript(graph: ImageToLandmarks, example: torch.Tensor, about: dict[str, str]) -> tuple[bytes, Predict]:
    """Return a TorchScript file with extra files, and its function."""
    file = io.BytesIO()
    with quiet(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(graph, (example,), check_trace=False))
        follow_input_device(traced.graph)
        torch.jit.save(traced, file, _extra_files={name: text.encode() for name, text in about.items()})
        loaded = torch.jit.load(io.BytesIO(file.getbuffer()))

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            landmarks, scores = loaded(torch.from_numpy(images))
        return landmarks.numpy(), scores.numpy()

    return file.getvalue(), predict


def follow_input_device(graph: torch.Graph) -> None:
    """Make a traced graph, with all its modules inlined, compute on the device of its input; a trace fixes its own."""
    image = list(graph.inputs())[1]  # the first is the module
    device = graph.create("prim::device", [image], 1)
    device.output().setType(torch._C.DeviceObjType.get())
    graph.prependNode(device)
    for constant in graph.findAllNodes("prim::Constant", recurse=True):
        if isinstance(constant.output().type(), torch._C.DeviceObjType):
            constant.output().replaceAllUsesWith(device.output())


@contextlib.contextmanager
def quiet():
    """Suppress the messages and warnings of torch's exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def describe(config: Config, state: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of the file, each entry as text."""
    settings = {name: v for name, v in config.to_dict().items() if name not in ("img_dir", "json_path", "run_dir")}
    return {
        "landmarks": json.dumps(state["abbreviations"], ensure_ascii=False),
        "names": json.dumps(state["names"], ensure_ascii=False),
        "method": config.method, "settings": json.dumps(settings), "commit": source_commit(),
        "input": "image: (batch, height, width) uint8 grey",
        "output": "landmarks: (batch, landmark, 2) x, y in px of the image, pixel centres at integers; scores",
    }  # fmt: skip


# --- Checking -------------------------------------------------------------------------------------------


def read_input(file: str | os.PathLike) -> np.ndarray:
    """Return an image file of any kind as what an exported network is fed, (1, h, w) uint8 grey. Raises UserError."""
    image = Image.fromarray(np.round(read_image(Path(file))).astype(np.uint8))
    return np.asarray(image.convert("L"))[None]


def read_for_check(config: Config, places: Sequence[str], most: int) -> list[tuple[str, np.ndarray]]:
    """Return up to `most` images, evenly chosen, as name and (h, w) uint8 grey. Raises UserError if there are none."""
    if not places and not Path(config.img_dir).is_dir():
        raise UserError(f"{config.img_dir}, the image folder of the checkpoint, is not there any more; give --images")
    files = find_image_files(places or [config.img_dir])
    images = []
    for index in sorted(set(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))):
        images.append((files[index].name, read_input(files[index])[0]))
    return images


def make_eager(predictor: Predictor) -> Predict:
    """Return the function that predicts as this repository does in a test."""

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        landmarks, figures = predictor.predict(images, [make_views(predictor.configs, image) for image in images])
        return landmarks, figures["score"]

    return predict


def largest_difference(
    eager: Predict, exported: Predict, images: Sequence[tuple[str, np.ndarray]]
) -> tuple[float, str]:
    """Return the largest distance in px between landmarks of both, and the name of its image.

    Every image is predicted alone, the first one in a batch too. Raises UserError if scores differ.
    """
    worst, where = 0.0, images[0][0]
    for number, (name, image) in enumerate(tqdm(images, "checking", leave=False, disable=None)):
        (expected, score), (found, own) = eager(image[None]), exported(image[None])
        distance = float(np.linalg.norm(found - expected, axis=-1).max())
        if not np.allclose(score, own, rtol=1e-2, atol=1e-2):
            raise UserError(f"the exported graph gives other scores at {name} (by {np.abs(score - own).max():.3g})")
        if number == 0:
            batch = exported(np.stack([image, image[:, ::-1], image]))[0]
            distance = max(distance, float(np.linalg.norm(batch[[0, 2]] - found, axis=-1).max()))
        worst, where = (distance, name) if not distance <= worst else (worst, where)  # nan counts as worse
    return worst, where


def median_seconds(predict: Predict, image: np.ndarray) -> float:
    """Return the median time of one prediction, after a warm-up."""
    return float(np.median(timeit.repeat(lambda: predict(image[None]), number=1, repeat=6)[1:]))


# --- The command ----------------------------------------------------------------------------------------


def export(checkpoint: str, kind: str, out: Path, places: Sequence[str], most: int) -> str:
    """Export, check and write; return a report. Raises UserError, and writes nothing, if the graph differs."""
    if most < 1:
        raise UserError("--checks must be at least 1")
    if out.exists():
        raise UserError(f"{out} exists already; remove it, or choose another --out")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: {out.parent} is not a folder; make it, or choose another --out")
    if int(cv2.__version__.split(".")[0]) < 5:
        raise UserError("the graph reproduces OpenCV 5, but an older one is installed: pip install -U opencv-python")
    state = read_checkpoint(checkpoint)
    settings = dict(device="cpu", test_precision="fp32", views=1, channels_last=False)
    config = trained_config(state).replace(**settings)
    images = read_for_check(config, places, most)
    predictor = Predictor(checkpoint, **settings)
    detector, eager = predictor.members[0][0], make_eager(predictor)
    example = torch.from_numpy(np.stack([images[0][1]] * 2))
    make = {"onnx": export_onnx, "torchscript": export_torchscript}[kind]
    content, exported = make(ImageToLandmarks(detector).eval(), example, describe(config, state))
    worst, where = largest_difference(eager, exported, images)
    if not worst <= TOLERANCE:
        hint = ": argmax may choose another of several equal pixels" if config.decode == "argmax" else ""
        raise UserError(
            f"the exported graph finds a landmark of {where} {worst:.3g} px off (allowed: {TOLERANCE} px){hint}; "
            "nothing is written"
        )
    image = images[0][1]
    ours, theirs = median_seconds(eager, image), median_seconds(exported, image)
    write_bytes(out, lambda file: file.write(content))
    return (
        f"{out}: {len(content) / 1e6:.0f} MB; "
        f"in {len(images)} images no landmark is more than {worst:.2g} px off\n"
        f"{image.shape[1]} x {image.shape[0]} px on this CPU: {1000 * theirs:.0f} ms per image, "
        f"{1000 * ours:.0f} ms in this repository ({ours / theirs:.2f} x)"
    )


def main() -> int:
    """Return the exit status: 2 for a mistake of the user, or a graph that finds other landmarks."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="of the file (onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (beside the checkpoint)")
    parser.add_argument("--images", nargs="+", default=[], help="files, folders or patterns to compare on")
    parser.add_argument("--checks", type=int, default=8, help="largest number of images to compare on (8)")

    def run() -> None:
        options = parser.parse_args()
        out = options.out or Path(options.checkpoint).with_suffix(FORMATS[options.format])
        print(export(options.checkpoint, options.format, out, options.images, options.checks))

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
