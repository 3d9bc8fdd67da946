"""The moving average of a network's weights (setting ema)."""

import copy

import torch

from detector import LandmarkDetector


class MovingAverage:
    """Exponential moving average of a detector's weights and of its norms' statistics, as a detector of its own.

    The first update copies, the next ones decay faster than `decay` asks. torch's AveragedModel computes the same, but
    looks up every tensor of both networks in every step, while a GPU waits.
    """

    def __init__(self, detector: LandmarkDetector, decay: float, steps: int = 0) -> None:
        self.detector, self.decay, self.steps = copy.deepcopy(detector), decay, steps
        mine, theirs = ([*each.parameters(), *each.buffers()] for each in (self.detector, detector))
        pairs = [(own.detach(), current.detach()) for own, current in zip(mine, theirs, strict=True)]
        values = [pair for pair in pairs if pair[0].is_floating_point()]
        self.values, self.current_values = [own for own, _ in values], [current for _, current in values]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]  # of batch norm

    @torch.no_grad()
    def update(self) -> None:
        """Take the detector's current weights into the average."""
        for own, current in self.counters:
            own.copy_(current)
        if self.steps == 0:
            torch._foreach_copy_(self.values, self.current_values)
        else:
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.values, self.current_values, 1 - decay)
        self.steps += 1
