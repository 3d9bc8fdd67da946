"""Targets, votes and windows of patches by hand, in two and three dimensions."""

import math

import pytest
import torch

from methods.patches import (
    class_targets,
    count_votes,
    displacement_targets,
    from_log,
    random_chunk,
    take_windows,
    to_log,
)

# --- Targets and votes ---------------------------------------------------------------------------


@pytest.mark.parametrize("base", [2.0, math.e, 10.0])
def test_the_logarithm_of_a_displacement_goes_there_and_back(base):
    distance = torch.linspace(-3000, 3000, 100_001, dtype=torch.float64)
    assert (from_log(to_log(distance, base), base) - distance).abs().max() < 1e-5
    single = distance.float()
    assert ((from_log(to_log(single, base), base) - single).abs() <= 1e-5 * (1 + single.abs())).all()
    assert to_log(torch.tensor([-9.0, 0, 99]), 10.0).tolist() == pytest.approx([-1, 0, 2])


def test_the_vote_of_an_untrained_network_stays_finite():
    assert from_log(torch.tensor([1e9, -1e9]), 10.0).tolist() == pytest.approx([1e5, -1e5], rel=1e-4)


@pytest.mark.parametrize(("x", "cell"), [(-0.5, 0), (15.49, 0), (15.5, 1), (31.49, 1), (31.5, None), (-0.51, None)])
def test_a_patch_holds_what_lies_on_its_pixels(x, cell):
    held = class_targets(torch.tensor([[[x, 20.0]]]), (3, 2), 16)[0, 0]
    assert held.nonzero().tolist() == ([] if cell is None else [[1, cell]])


@pytest.mark.parametrize(("size", "patch"), [((64, 96), 32), ((64, 96), 2), ((32, 48, 64), 8)])
def test_a_field_of_perfect_votes_decodes_to_its_landmarks_in_any_number_of_dimensions(size, patch):
    torch.manual_seed(0)
    landmarks = torch.rand(3, 5, len(size)) * (torch.tensor(size[::-1]) - 1)
    grid = [length // patch for length in size]
    classes = class_targets(landmarks, grid, patch)
    displacements = displacement_targets(landmarks, grid, patch, 10.0)
    assert classes.shape == (3, 5, *grid) and displacements.shape == (3, 5, len(size), *grid)
    assert (classes.flatten(2).sum(-1) == 1).all()
    for logits in (classes * 8.0 - 4, torch.zeros(3, 5, *grid)):
        found, score, spread = count_votes(logits, displacements, patch, 10.0)
        assert (found - landmarks).abs().max() < 1e-3 and spread.max() < 1e-2
        assert torch.allclose(score, logits.flatten(2).amax(-1).sigmoid())


def test_votes_are_weighted_by_the_probabilities_of_their_patches():
    logits = torch.tensor([0.8, 0.2]).logit().view(1, 1, 1, 2)  # two patches of 8 px, side by side
    displacements = torch.zeros(1, 1, 2, 1, 2)  # each votes for its own centre, at x = 3.5 and 11.5
    displacements[0, 0, 1] = to_log(torch.tensor(2.0), 10.0)  # and 2 px below it
    found, score, spread = count_votes(logits, displacements, 8, 10.0)
    assert found[0, 0].tolist() == pytest.approx([0.8 * 3.5 + 0.2 * 11.5, 5.5], abs=1e-5)
    assert score.item() == pytest.approx(0.8)
    assert spread[0, 0].tolist() == pytest.approx([math.sqrt(0.8 * 1.6**2 + 0.2 * 6.4**2), 0], abs=1e-4)


def test_votes_of_patches_that_all_deny_a_landmark_still_have_a_mean():
    displacements = torch.zeros(1, 1, 2, 1, 2)
    found, score, _ = count_votes(torch.tensor([-400.0, -400]).view(1, 1, 1, 2), displacements, 8, 10.0)
    assert found[0, 0].tolist() == [7.5, 3.5] and score.item() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_votes_that_are_not_finite_are_not_counted(value):
    logits, displacements = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, 2)
    for broken in (logits, displacements):
        broken.view(-1)[1] = value
        with pytest.raises(ValueError, match="nan or infinite"):
            count_votes(logits, displacements, 8, 10.0)
        broken.view(-1)[1] = 0


# --- Windows -------------------------------------------------------------------------------------


def test_windows_show_the_image_from_where_they_begin_and_its_border_beyond_it():
    image = torch.arange(2 * 5 * 7).view(2, 5, 7)
    start = torch.tensor([[[2, 1], [-2, -1]], [[5, 3], [0, 0]]])
    windows = take_windows(image, start, 3)
    assert torch.equal(windows[0, 0], image[0, 1:4, 2:5])
    assert torch.equal(windows[1, 1], image[1, :3, :3])
    assert windows[0, 1].tolist() == [[0, 0, 0], [0, 0, 0], [7, 7, 7]]
    assert windows[1, 0].tolist() == [[61, 62, 62], [68, 69, 69], [68, 69, 69]]


def test_windows_may_be_those_of_another_image_of_the_batch():
    image = torch.arange(2 * 5 * 7).view(2, 5, 7)
    windows = take_windows(image, torch.tensor([[[2, 1]], [[0, 0]]]), 3, source=torch.tensor([[1], [0]]))
    assert torch.equal(windows[0, 0], image[1, 1:4, 2:5]) and torch.equal(windows[1, 0], image[0, :3, :3])


def test_windows_of_a_volume():
    volume = torch.arange(1 * 4 * 5 * 6).view(1, 4, 5, 6)
    windows = take_windows(volume, torch.tensor([[[3, 2, 1]]]), 2)  # x, y, z
    assert torch.equal(windows[0, 0], volume[0, 1:3, 2:4, 3:5])


def test_a_chunk_moves_its_landmarks_with_its_pixels():
    torch.manual_seed(0)
    image, landmarks = torch.zeros(8, 3, 64, 96), torch.tensor([[[40.0, 30.0]]]).repeat(8, 1, 1)
    image[:, :, 30, 40] = 1
    chunks, moved = random_chunk(image, landmarks, 32)
    assert chunks.shape == (8, 3, 32, 32) and len({tuple(at) for at in moved[:, 0].tolist()}) > 4
    inside = ((moved >= 0) & (moved < 32)).all(-1)[:, 0]
    assert inside.any() and not inside.all()
    for chunk, (x, y), there in zip(chunks, moved[:, 0].long().tolist(), inside, strict=True):
        assert chunk[0, y, x] == 1 if there else chunk.sum() == 0
