"""What exists for both images, as one value."""

import copy
import pickle

import pytest
from nephi.both import ROLES, Both, complete


def test_a_function_takes_the_values_of_one_image_at_a_time():
    assert Both(2, 3).map(lambda n: n + 1) == Both(3, 4)
    named = ROLES.map(lambda role, n, unit: f"{role} {n} {unit}", Both(1, 2), Both("mm", "voxels"))
    assert (named.fixed, named.moving) == ("fixed 1 mm", "moving 2 voxels")


def test_it_is_a_tuple_of_two_that_can_be_exchanged_copied_and_sent():
    both = Both("a", "b")
    fixed, moving = both
    assert both.swapped == (moving, fixed) and isinstance(both.swapped, Both)
    for same in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert same == both and type(same) is Both


@pytest.mark.parametrize("given, expected", [((1, 0), Both(1, 0)), ((None, 1), None), ((1, None), None)])
def test_it_is_complete_where_neither_is_missing(given, expected):
    assert complete(*given) == expected
