"""Specs on the wire."""

import pytest

from common.codec import Envelope, decode, encode
from common.errors import ProtocolError
from common.messages import Welcome
from common.types import ActionSpec, ArraySpec, EnvSpec

CHOICE = ActionSpec("discrete", "<i8", (), n=(3,))
BOX = ActionSpec("box", "<f4", (1, 2), low=(-1.0, 0.0), high=(1.0, 4.0))
DESK = EnvSpec("Desk", (ArraySpec("a/b", "|b1", (2,), stack=2),), ActionSpec("tuple", "<f8", (3,), parts=(CHOICE, BOX)))


def test_a_spec_of_several_actions_survives_the_wire() -> None:
    frames = encode(Welcome(1, 2, DESK.to_wire()), Envelope(1, 2, 3, 4))
    message = decode([memoryview(frame).tobytes() for frame in frames])[0]
    assert isinstance(message, Welcome)
    assert EnvSpec.from_wire(message.spec) == DESK
    assert DESK.action.size == 3


@pytest.mark.parametrize("depth", [1, 5000])
def test_parts_that_are_no_actions_are_refused_however_deep(depth: int) -> None:
    action: dict[str, object] = {"kind": "tuple", "dtype": "<f8", "shape": (1,), "parts": ({"kind": "song"},)}
    for _ in range(depth):
        action = {**action, "parts": (action,)}
    with pytest.raises(ProtocolError, match="is no EnvSpec"):
        EnvSpec.from_wire({**DESK.to_wire(), "action": action})
