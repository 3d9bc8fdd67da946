import pytest
import torch
from conftest import tiny_config

from data import make_loader
from evaluate import evaluate
from methods import create_detector
from splits import load_data

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("tiny_method")


def test_evaluation_changes_no_batch_norm_statistic_and_batches_do_not_matter(dataset):
    torch.manual_seed(0)
    config = tiny_config(dataset, method="tiny")
    records, detector = load_data(config).records, create_detector(config)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    first, second = (
        evaluate(detector.train(), make_loader(config.replace(batch_size=size), records, train=False), CPU)
        for size in (2, 1)
    )
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert abs(first.landmarks - second.landmarks).max() < 1e-2
