"""The loss against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from lora_atelier.training import loss

PREDICTION = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
WANTED = torch.zeros(1, 1, 2, 2)
"""Squares 1, 4, 9, 16."""
LEFT = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])


def test_without_a_mask_it_is_the_mean_square():
    assert loss.batch_loss(PREDICTION, WANTED).item() == 7.5


def test_a_mask_weighs_by_its_own_mean():
    # Weights 1, 0, 1, 0 over their mean 0.5: 2, 0, 2, 0; (2 x 1 + 2 x 9) / 4.
    assert loss.batch_loss(PREDICTION, WANTED, LEFT).item() == 5.0


def test_the_floor_lets_the_outside_count_a_little():
    # Weights 1, 0.25, 1, 0.25 over their mean 0.625: (1 + 1 + 9 + 4) / 4 / 0.625.
    assert loss.batch_loss(PREDICTION, WANTED, LEFT, 0.25).item() == pytest.approx(6.0)


def test_a_white_mask_changes_nothing_and_a_black_one_with_a_floor_neither():
    for mask, floor in ((torch.ones(1, 1, 2, 2), 0.1), (torch.zeros(1, 1, 2, 2), 0.1)):
        assert loss.batch_loss(PREDICTION, WANTED, mask, floor).item() == pytest.approx(7.5)


def test_a_black_mask_without_a_floor_is_no_loss_and_no_nan():
    assert loss.batch_loss(PREDICTION, WANTED, torch.zeros(1, 1, 2, 2)).item() == 0


def test_each_picture_is_weighed_by_its_own_mask_in_every_channel_and_frame():
    squares = torch.tensor([[1.0, 4.0, 9.0, 16.0]]).sqrt().reshape(1, 1, 1, 2, 2).expand(2, 3, 1, 2, 2)
    masks = torch.cat([LEFT, 1 - LEFT])
    # As above for the left columns; the right ones give (2 x 4 + 2 x 16) / 4.
    assert loss.per_sample_loss(squares, torch.zeros_like(squares), masks).tolist() == [5.0, 10.0]


def test_the_weight_of_a_subset_scales_its_loss():
    assert loss.batch_loss(PREDICTION, WANTED, weight=0.5).item() == 3.75
    assert loss.batch_loss(PREDICTION, WANTED, LEFT, 0.0, 0.5).item() == 2.5
