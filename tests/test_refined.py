import pytest
import torch
from conftest import make_batch, refuses, tiny_config
from torch.nn import functional as F

from detector import NonFiniteLoss
from methods import create_detector
from methods.noothout import NoothoutConfig
from methods.refined import SIDE, CropRefiner
from networks.crop_network import decode_shifts, sample_squares, take_crops
from settings import build_config
from utils import apply_affine, scale_landmarks

SIZES = dict(method="tiny", refine=2, height=128, width=192)


def ramps(width=40, height=30) -> torch.Tensor:
    """An image (1, 3, height, width) whose channels are x, y and x + y of each pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, x + y]).float()[None]


def test_a_square_around_a_corner_of_four_pixels_holds_the_pixels_themselves():
    image = torch.randn(2, 3, 30, 40)
    squares = sample_squares(image, torch.tensor([[[10.5, 8.5]], [[20.5, 15.5]]]), 4)
    torch.testing.assert_close(squares[0], image[0, :, 7:11, 9:13])
    torch.testing.assert_close(squares[1], image[1, :, 14:18, 19:23])


def test_both_crops_of_a_landmark_have_it_in_their_middle():
    points = torch.tensor([[[12.3, 14.8], [21.0, 9.6]]])
    crops = take_crops(ramps(), points, 8)
    assert crops.shape == (2, 2, 3, 8, 8)
    for crop, (x, y) in zip(crops, points[0], strict=True):
        torch.testing.assert_close(crop.mean((-2, -1)), torch.stack([x, y, x + y]).expand(2, 3))
        assert (crop[:, 0, 0, -1] - crop[:, 0, 0, 0]).tolist() == pytest.approx([7, 14], abs=1e-4)  # px of the image


def test_crops_at_the_border_repeat_the_outermost_pixels():
    crops = take_crops(ramps(), torch.tensor([[[0.0, 0.0]]]), 8)
    assert crops[0, 0, 0, 0, :4].tolist() == [0, 0, 0, 0] and crops.isfinite().all()


@pytest.mark.parametrize(("column", "row"), [(0, 0), (13, 20), (31, 31)])
def test_a_peak_of_the_logits_is_decoded_to_its_place(column, row):
    logits = torch.full((1, SIDE // 2, SIDE // 2), -50.0)
    logits[0, row, column] = 50
    # a map pixel covers two of the crop, whose centre lies between its middle pixels
    expected = [2 * column + 0.5 - (SIDE - 1) / 2, 2 * row + 0.5 - (SIDE - 1) / 2]
    assert decode_shifts(logits)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_without_a_shift_the_landmarks_are_those_of_the_method_at_half_the_size(dataset):
    torch.manual_seed(0)
    config = tiny_config(dataset, **SIZES)
    detector, batch = create_detector(config).eval(), make_batch(config)
    torch.nn.init.zeros_(detector.second.network.last)
    with torch.inference_mode():
        landmarks, scores, _ = detector.predict_with_extras(batch, 0)
        coarse, own = detector.first.predict(F.avg_pool2d(batch.image, 2))
    assert detector.first.config.width == 96 and torch.equal(scores, own)
    torch.testing.assert_close(landmarks, scale_landmarks(coarse, 2).clamp(-0.5), atol=1e-4, rtol=0)


def test_the_smaller_batch_of_the_method_shows_the_same_places_of_the_file(dataset):
    config = tiny_config(dataset, **SIZES)
    detector, batch = create_detector(config), make_batch(config)
    small = detector.shrink(batch)
    assert small.image.shape[-2:] == (64, 96)
    for each in (batch, small):
        places = apply_affine(each.to_original, each.landmarks.double())
        torch.testing.assert_close(places, apply_affine(batch.to_original, batch.landmarks.double()))


@pytest.mark.slow
def test_the_second_stage_learns_to_move_guesses_closer(dataset):
    config = tiny_config(dataset, height=128, width=192)
    torch.manual_seed(0)
    refiner, batch = CropRefiner(config).train(), make_batch(config)
    optimizer = torch.optim.AdamW(refiner.parameters(), 1e-3)
    for _ in range(60):
        refiner.train_step(batch, 0, {"refinement": optimizer})
    guesses = batch.landmarks + torch.tensor([6.0, -4.0])
    with torch.inference_mode():
        error = (refiner.eval().refine(batch.image, guesses) - batch.landmarks).norm(dim=-1).mean()
    assert error < 3.6  # half of the 7.2 px before


@pytest.mark.parametrize("stage", ["first", "second"])
def test_no_stage_takes_a_step_if_the_loss_of_one_is_not_finite(dataset, stage):
    config = tiny_config(dataset, **SIZES)
    detector = create_detector(config).train()
    next(getattr(detector, stage).parameters()).data.fill_(float("nan"))
    before = {name: value.clone() for name, value in detector.named_parameters()}
    with pytest.raises(NonFiniteLoss):
        detector.train_step(make_batch(config), 0, detector.configure_optimizers())
    for name, value in detector.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_norms_of_a_pretrained_trunk_keep_their_statistics(dataset):
    refiner = CropRefiner(tiny_config(dataset, height=128, width=192))
    assert refiner.train().network.trunk.training
    refiner.network.fixed_norms.fill_(True)  # as after loading a checkpoint that started from pretrained weights
    assert not refiner.train().network.trunk.training and refiner.network.merge.training


def test_sizes_that_the_first_stage_cannot_have_and_a_third_stage_are_refused(tmp_path):
    with refuses("height", "multiple of 64 from 128"):
        tiny_config(tmp_path, refine=2, height=160, width=192)
    with refuses("refine", "5"):
        tiny_config(tmp_path, refine=5)
    with refuses("refine", "second stage of its own"):
        build_config(NoothoutConfig, {"method": "noothout", "refine": 2, "height": 128, "width": 128})
