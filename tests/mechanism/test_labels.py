"""The labels of this machine."""

from __future__ import annotations

import platform
import socket

import pytest

from sidecar.core.nodes import Node
from sidecar.mechanism.labels import VARIABLE, LabelError, this_node


def test_a_machine_says_its_name_and_kind_by_itself() -> None:
    assert this_node((), {}) == Node({"hostname": socket.gethostname(), "os": "linux", "arch": platform.machine()})


def test_the_command_line_wins_over_the_environment_and_that_over_what_is_built_in() -> None:
    labels = this_node(["gpu=h200"], {VARIABLE: " gpu=a100, rack=a ,,hostname=box"}).labels
    assert labels is not None
    assert (labels["gpu"], labels["rack"], labels["hostname"]) == ("h200", "a", "box")


def test_labels_of_another_machine_take_nothing_from_this_one() -> None:
    assert this_node(["rack=b"], {VARIABLE: "gpu=a100"}, {"gpu": "h200"}) == Node({"gpu": "h200", "rack": "b"})


@pytest.mark.parametrize(
    ("given", "variable", "told"),
    [
        (["gpu"], "", "--label: expected KEY=VALUE"),
        ([], "gpu=a,nonsense", f'{VARIABLE}: expected KEY=VALUE, such as gpu=h200, got "nonsense"'),
        (["gpu=a", "gpu=b"], "", '--label: the label "gpu" is given twice: a and b'),
    ],
)
def test_what_is_no_label_is_told_with_its_source(given: list[str], variable: str, told: str) -> None:
    with pytest.raises(LabelError, match=told):
        this_node(given, {VARIABLE: variable})
