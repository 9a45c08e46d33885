"""A run on one machine listens on the loopback interface only: nothing of it can be reached from the network."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ipaddress, psutil, ray
from grpo.recipe import _start_ray

_start_ray()
ray.get(ray.remote(lambda: 1).remote())
root = psutil.Process()
listening = {
    (process.name(), connection.laddr.ip)
    for process in (root, *root.children(recursive=True))
    for connection in process.net_connections()
    if connection.status == psutil.CONN_LISTEN
}
assert len(listening) > 2, listening
outside = [pair for pair in listening if not ipaddress.ip_address(pair[1].removeprefix("::ffff:")).is_loopback]
print("OUTSIDE", sorted(outside))
"""


def test_all_listeners_are_on_the_loopback_interface() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert "OUTSIDE []" in result.stdout, result.stdout
