"""Show which parts of an image speak for a landmark: gradient-weighted activation maps (Grad-CAM).

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import crop_to_landmarks, make_sample
from detector import LandmarkDetector
from reading.annotation import Record
from reporting.pictures import draw_activations, picture_name, save_picture, spread_of_images
from reporting.predictions import PredictionTable
from utils import compose_affines, resize_affine


def activation_maps(detector: LandmarkDetector, image: Tensor, landmarks: Sequence[int]) -> Tensor:
    """Return maps (n, h, w) in 0..1 of what speaks for n landmarks in an image (1, 3, H, W).

    A map is the sum of the inputs of detector.last_layer, each weighted by the mean gradient of the landmark's
    explained_value. Negative values, which speak against the landmark, become 0. The maximum is 1, or 0 if nothing
    speaks for the landmark.
    """
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple) -> tuple:
        torch.set_grad_enabled(True)  # until the end of no_grad below; earlier layers store nothing for a gradient
        kept.append(inputs[0].detach().requires_grad_())
        return (kept[-1], *inputs[1:])

    hook = detector.last_layer().register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            values = detector.explained_value(detector(image))
    finally:
        hook.remove()
    features, maps = kept[-1], list[Tensor]()
    for number in landmarks:
        (gradient,) = torch.autograd.grad(values[0, number], features, retain_graph=True)
        weights = gradient.float().mean((-2, -1), keepdim=True)
        maps.append((weights * features.detach().float()).sum(1).clamp(min=0)[0])
    stacked = torch.stack(maps)
    return stacked / stacked.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def draw_explanations(
    folder: Path, table: PredictionTable, records: Sequence[Record], detector: LandmarkDetector
) -> None:
    """Draw folder/explanations/*.png for config.explain images, spread from the smallest mean error to the largest.

    A picture shows the detected (red) and the true (blue) landmark and the activation map, from clear to yellow.
    detector: in eval mode, with the crop of its weights, not from for_inference, which replaces layers.
    """
    config, device = detector.config, next(detector.parameters()).device
    by_name = {record.name: record for record in records}
    chosen = [table.abbreviations.index(name) for name in config.explain_landmarks or table.abbreviations]
    (folder / "explanations").mkdir(exist_ok=True)
    ranks = spread_of_images(table.errors, config.explain)
    for rank, index in tqdm(ranks, "explaining", leave=False, disable=None):
        record = by_name[table.names[index]]
        crop = crop_to_landmarks(config, table.landmarks[index], record.size) if config.crop_follows else None
        sample = make_sample(config, record, crop=crop)
        maps = activation_maps(detector, sample.image[None].to(device), chosen).cpu().numpy()
        to_network = resize_affine(maps.shape[:0:-1], (config.width, config.height))
        points = np.stack([table.landmarks[index], table.truth[index]])
        pairs = {table.abbreviations[n]: points[:, n] for n in chosen}
        picture = draw_activations(record, maps, compose_affines(to_network, sample.to_original.numpy()), pairs)
        save_picture(picture, folder / "explanations" / picture_name(rank, record.name))
