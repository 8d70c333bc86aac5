"""What goes to another device goes in one buffer, and comes out of it as it was. No device is needed to see that."""

import numpy as np
import torch

from common.rl.transfer import joined_to_device, packed, split_on_host, to_device, to_host, unpacked

CPU = torch.device("cpu")
ARRAYS = {
    "flags": np.array([[True, False, True]]),
    "numbers": np.arange(12, dtype=np.int64).reshape(3, 4),
    "image": np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5),
    "none": np.zeros((0, 5), np.float32),
    "masks": np.array([-1, 7], np.int8),
    "reals": np.array([[0.5], [-2.0]], np.float32),
    "doubles": np.array([1e300, -0.0]),
}


def test_packed_arrays_come_out_as_they_went_in() -> None:
    places, buffer = packed({name: (array,) for name, array in ARRAYS.items()}, pinned=False)
    found = unpacked(places, buffer)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_all_arrays_are_views_of_the_one_buffer_each_at_a_multiple_of_256_bytes() -> None:
    places, buffer = packed({name: (array,) for name, array in ARRAYS.items()}, pinned=False)
    assert [place.start for place in places.values()] == [0, 256, 512, 768, 768, 1024, 1280]
    assert buffer.shape == (1536,)
    found = unpacked(places, buffer)
    buffer.zero_()
    assert all(not x.any() for x in found.values())


def test_what_is_read_only_unaligned_or_scattered_is_packed_as_well() -> None:
    unaligned = np.frombuffer(bytes(1) + np.arange(3, dtype=np.float32).tobytes(), np.float32, offset=1)
    scattered = np.arange(12, dtype=np.int32).reshape(3, 4).T[::2]
    found = unpacked(*packed({"unaligned": (unaligned,), "scattered": (scattered,)}, pinned=False))
    assert found["unaligned"].tolist() == [0.0, 1.0, 2.0]
    assert found["scattered"].tolist() == [[0, 4, 8], [2, 6, 10]]


def test_parts_are_joined_along_their_first_axis() -> None:
    parts = {"x": [np.array([[1, 2]]), np.array([[3, 4], [5, 6]])], "y": [np.array([True]), np.array([False, True])]}
    for found in (unpacked(*packed(parts, pinned=False)), joined_to_device(parts, CPU)):
        assert found["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
        assert found["y"].tolist() == [True, False, True]


def test_on_the_cpu_nothing_is_copied_but_what_is_read_only() -> None:
    mine, theirs = np.zeros(3), np.zeros(3)
    theirs.flags.writeable = False
    found = to_device({"mine": mine, "theirs": theirs}, CPU)
    assert np.shares_memory(found["mine"].numpy(), mine)
    assert not np.shares_memory(found["theirs"].numpy(), theirs)
    assert np.shares_memory(to_host(found)["mine"], mine)


def test_to_another_device_goes_one_buffer() -> None:
    # Tensors of the meta device have shapes and no memory: enough to see what is sent.
    found = to_device(ARRAYS, torch.device("meta"))
    assert {name: (tuple(x.shape), x.device.type) for name, x in found.items()} == {
        name: (array.shape, "meta") for name, array in ARRAYS.items()
    }
    assert len({x.untyped_storage()._cdata for x in found.values()}) == 1


def test_results_come_back_in_one_array_aligned_and_in_order() -> None:
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    tensors["scattered"] = torch.arange(6).reshape(2, 3).t()
    found = split_on_host(tensors)
    assert list(found) == list(tensors)
    for name, x in tensors.items():
        assert found[name].dtype == x.numpy().dtype
        assert found[name].flags.aligned
        np.testing.assert_array_equal(found[name], x.numpy())
