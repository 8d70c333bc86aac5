from common import messages


def test_the_number_of_each_kind_on_the_wire_never_changes() -> None:
    assert {number: kind.__name__ for number, kind in enumerate(messages.KINDS)} == {
        0: "Hello",
        1: "Welcome",
        2: "Act",
        3: "Actions",
        4: "Insert",
        5: "Inserted",
        6: "Sample",
        7: "Batch",
        8: "UpdatePriorities",
        9: "GetWeights",
        10: "Weights",
        11: "NotModified",
        12: "Finish",
        13: "Finished",
        14: "Ok",
        15: "Wait",
        16: "Error",
    }


def test_the_protocol_has_the_version_this_test_was_written_for() -> None:
    assert messages.PROTOCOL == 2
