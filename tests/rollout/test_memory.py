"""Tests of the memory that processes hold."""

from __future__ import annotations

import subprocess
import sys

from rollout.memory import bytes_of_process, bytes_of_tree

HOLDER = "import sys; held = b'x' * 200_000_000; print('here', flush=True); sys.stdin.read()"


def test_memory_of_a_tree_includes_its_children() -> None:
    alone = bytes_of_tree()
    child = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"here\n"
    with_child = bytes_of_tree()
    assert 200e6 < bytes_of_tree(child.pid) < 300e6
    assert with_child - alone > 190e6 > abs(bytes_of_process() - alone)
    child.communicate()
    assert bytes_of_tree(child.pid) == 0
