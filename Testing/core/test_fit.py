"""The schedule of the learning rate."""

from __future__ import annotations

import math

import pytest
from nephi.fitting.fit import rate_factor
from nephi.settings import FitSettings

LONG = FitSettings(iterations=1000, warm_up=0.1)


def test_the_rate_rises_in_even_steps_to_the_full_one():
    rising = [rate_factor(step, LONG) for step in range(101)]
    steps = [b - a for a, b in zip(rising, rising[1:], strict=False)]
    assert rising[0] == pytest.approx(1 / 101) and rising[100] == 1.0
    assert steps == pytest.approx([1 / 101] * 100)


def test_then_it_falls_as_a_cosine_to_zero():
    assert rate_factor(550, LONG) == pytest.approx(0.5)
    assert rate_factor(325, LONG) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert rate_factor(999, LONG) == pytest.approx(0.0, abs=1e-5)
    assert rate_factor(1000, LONG) == pytest.approx(0.0, abs=1e-12) == rate_factor(2000, LONG)


def test_a_constant_rate_stays_after_the_warm_up():
    constant = FitSettings(iterations=1000, warm_up=0.1, schedule="constant")
    assert rate_factor(50, constant) == rate_factor(50, LONG) < 1
    assert {rate_factor(step, constant) for step in (100, 500, 999)} == {1.0}
    assert rate_factor(0, FitSettings(iterations=1000, warm_up=0.0, schedule="constant")) == 1.0


def test_of_few_steps_the_first_are_short_all_the_same():
    """Adam's first steps are as long as the rate, whatever the gradient."""
    few = FitSettings(iterations=20, warm_up=0.1)
    assert rate_factor(0, few) < 0.2 and rate_factor(2, few) < 0.5
