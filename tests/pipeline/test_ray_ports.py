"""A run starts a Ray of its own, on the loopback interface only, whatever else is there; a cluster that RAY_ADDRESS names asks for its token."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.errors import EngineError
from grpo.resources.ray_cluster import obstacles, start_ray

SCRIPT = """
import contextlib, ipaddress, psutil, ray, socket
from grpo.resources.ray_cluster import start_ray

taken = [socket.socket() for _ in range(3)]
for probe, port in zip(taken, (6379, 8265, 10001)):  # where Ray and its dashboard would be
    with contextlib.suppress(OSError):  # something else has it, which is as good
        probe.bind(("127.0.0.1", port))
        probe.listen()
start_ray()
ray.get(ray.remote(lambda: 1).remote())
for probe in taken:
    probe.close()
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

CLUSTER = """
import ray

ray._private.ray_constants.ENABLE_RAY_CLUSTER = True  # on the interface that others reach it by
ray.init(num_cpus=1, include_dashboard=False)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""

DRIVER = """
import os, ray
from grpo.resources.ray_cluster import start_ray

start_ray()
print("ANSWER", ray.get(ray.remote(lambda: 41 + 1).remote()), os.environ.get("RAY_AUTH_MODE"))
"""


@pytest.fixture
def dead_cluster() -> Iterator[dict[str, str]]:
    """A folder where Ray finds the address of a cluster that is gone."""
    with tempfile.TemporaryDirectory(prefix="g", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        yield {"RAY_TMPDIR": folder}


ODD = {
    "RAY_ADDRESS": "local",
    "HOME": "/proc/nohome",
    "TMPDIR": f"/tmp/{95 * 'x'}",
}  # what Ray's documents advise; a container; a batch job


@pytest.mark.parametrize("is_odd", [False, True], ids=["a-dead-cluster", "an-odd-environment"])
def test_all_listeners_are_on_the_loopback_interface_whatever_ports_are_taken(dead_cluster: dict[str, str], is_odd: bool) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | (ODD if is_odd else dead_cluster)
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=env, check=False)
    assert "OUTSIDE []" in result.stdout, result.stdout + result.stderr
    assert not Path(ODD["TMPDIR"]).exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1 (Connection refused); start the cluster, or unset RAY_ADDRESS"),
        ("nonsense", "'nonsense', is not HOST:PORT"),
        ("auto", "RAY_ADDRESS=auto: no Ray cluster runs on this machine; start the cluster, or unset RAY_ADDRESS"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, told: str) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)  # whoever else uses this machine
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(EngineError) as error:
        start_ray()
    assert told in str(error.value)


def test_what_would_keep_ray_from_starting_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert obstacles() == []
    monkeypatch.setattr("grpo.resources.ray_cluster._address_space_gib", lambda: 7.6)
    assert obstacles() == [
        "ulimit -v allows 7.6 GiB of address space, and Ray needs 16; run ulimit -v unlimited first, or ask for a compute node: "
        "login nodes often set this limit"
    ]


@pytest.mark.faults
def test_a_cluster_asks_for_its_token() -> None:
    def environment(**more: str) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more

    def driver(token: str) -> subprocess.CompletedProcess[str]:
        env = environment(RAY_ADDRESS=address, RAY_AUTH_TOKEN=token)
        return subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, timeout=120, env=env, check=False)

    ours, other = 64 * "a", 64 * "b"
    command = [sys.executable, "-c", CLUSTER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(RAY_AUTH_TOKEN=ours), **pipes) as cluster:  # type: ignore[call-overload]
        try:
            address = cluster.stdout.readline().strip()
            refused, answered = driver(other), driver(ours)
        finally:
            cluster.communicate("\n", timeout=60)
    assert "ANSWER 42 token" in answered.stdout, answered.stderr
    assert refused.returncode != 0 and "ANSWER" not in refused.stdout
    assert (
        "EngineError: the Ray cluster of RAY_ADDRESS=" in refused.stderr
        and "RAY_AUTH_TOKEN must hold the cluster's token" in refused.stderr
    )
