"""What a network saw of a landmark: gradient-weighted activation maps, drawn over the radiograph.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import make_sample
from detector import LandmarkDetector
from reading.annotation import Record
from reporting.pictures import draw_activations, spread_of_images
from reporting.predictions import PredictionTable
from utils import compose_affines, resize_affine


def activation_maps(detector: LandmarkDetector, image: Tensor, landmarks: Sequence[int]) -> Tensor:
    """For some landmarks of an image (1, 3, H, W): where the last features spoke for them, maps (n, h, w) in 0..1.

    The features that detector.last_layer reads, each weighted by the mean gradient of the landmark's evidence with
    respect to it, added up; what speaks against the landmark is cut off, and the greatest value of a map is 1 (0:
    nothing speaks for it).
    """
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple) -> tuple:
        kept.append(inputs[0].detach().requires_grad_())  # what comes before needs no gradient, and keeps no memory
        return (kept[-1], *inputs[1:])

    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    hook = detector.last_layer().register_forward_pre_hook(keep)
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            evidence = detector.explained_value(detector(image))
    finally:
        hook.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
    features, maps = kept[-1], []
    for number in landmarks:
        (gradient,) = torch.autograd.grad(evidence[0, number], features, retain_graph=True)
        weights = gradient.float().mean((-2, -1), keepdim=True)
        maps.append((weights * features.detach().float()).sum(1).clamp(min=0)[0])
    maps = torch.stack(maps)
    return maps / maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def draw_explanations(
    folder: Path, table: PredictionTable, records: Sequence[Record], detector: LandmarkDetector
) -> None:
    """Draw folder/explanations/*.png for config.explain images, spread from the smallest mean error to the largest.

    detector: in eval mode, with the crop of its weights; not what for_inference gives, whose layers are others. On a
    picture the detected (red) and true (blue) landmark, and the activation map, from clear to yellow.
    """
    config, device = detector.config, next(detector.parameters()).device
    abbreviations = table.abbreviations
    by_name = {record.name: record for record in records}
    chosen = [abbreviations.index(name) for name in config.explain_landmarks or abbreviations]
    (folder / "explanations").mkdir(exist_ok=True)
    ranks = spread_of_images(table.errors, config.explain)
    for rank, index in tqdm(ranks, "explaining", leave=False, disable=None):
        record = by_name[table.names[index]]
        sample = make_sample(config, record)
        maps = activation_maps(detector, sample.image[None].to(device), chosen).cpu().numpy()
        to_network = resize_affine(maps.shape[:0:-1], (config.width, config.height))
        points = np.stack([table.landmarks[index], table.truth[index]])
        pairs = {abbreviations[n]: points[:, n] for n in chosen}
        picture = draw_activations(record, maps, compose_affines(to_network, sample.to_original.numpy()), pairs)
        picture.save(folder / "explanations" / f"{rank:03d}_{Path(record.name).stem}.png")
