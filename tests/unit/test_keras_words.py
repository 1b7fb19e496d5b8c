"""What is told of an error of TensorFlow's."""

from __future__ import annotations

import pytest

from validators.workloads import keras_start

OF_A_GRAPH = """Graph execution error:

Detected at node while/sgd_2/CollectiveReduceV2_1 defined at (most recent call last):
  File "<string>", line 1, in <module>

  File "/home/gpu/bundle/validators/__main__.py", line 36, in main

2 root error(s) found.
  (0) INTERNAL:  NCCL: unhandled system error
\t [[{{node while/sgd_2/CollectiveReduceV2_1}}]]
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OF_A_GRAPH, "2 root error(s) found. (0) INTERNAL:  NCCL: unhandled system error"),
        ("OOM when allocating tensor", "OOM when allocating tensor"),
        ("", "RuntimeError"),
    ],
)
def test_the_cause_is_told_without_the_stack(text: str, expected: str) -> None:
    assert keras_start.cause(RuntimeError(text)) == expected
