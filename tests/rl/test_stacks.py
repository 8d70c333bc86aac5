import numpy as np

from common.rl.stacks import stacked


def test_zeros_stand_before_the_first_frame_of_an_episode() -> None:
    # T = 4, k = 3: rows 0 to 2 are the stack at t = 0, then one more frame a step.
    frames = np.array([[1, 11], [2, 12], [3, 13], [4, 14], [5, 15], [6, 16], [7, 17]])
    first = np.array([[0, 1], [0, 0], [1, 0], [0, 0], [0, 1]], np.bool_)
    index = np.arange(10).reshape(5, 2)
    np.testing.assert_array_equal(
        stacked(frames, first, index, 3),
        [
            [[1, 2, 3], [0, 0, 13]],
            [[2, 3, 4], [0, 13, 14]],
            [[0, 0, 5], [13, 14, 15]],
            [[0, 5, 6], [14, 15, 16]],
            [[5, 6, 7], [0, 0, 17]],
        ],
    )


def test_only_the_stacks_asked_for_are_built() -> None:
    frames = np.arange(6 * 3 * 4).reshape(6, 3, 2, 2)
    first = np.zeros((5, 3), np.bool_)
    built = stacked(frames, first, np.array([0, 13]), 2)
    assert built.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(built[0], frames[:2, 0])
    np.testing.assert_array_equal(built[1], frames[4:6, 1])
