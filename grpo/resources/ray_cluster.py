"""Which Ray does a run use? One of its own, on the loopback interface, that no signal reaches; or the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.errors import EngineError
from grpo.util.cores import num_cores
from rewards.errors import one_line

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What ends a run. Only the driver may act on them: it saves first, and needs all its processes for that."""
LONGEST_TEMPORARY = 107 - len("/session_2026-11-28_23-59-59_123456_1234567/sockets/plasma_store")  # the path of a socket has 107 bytes
LEAST_ADDRESS_SPACE_GIB = 16  # with 8 Ray neither starts nor fails, with 16 it runs tasks that import torch
ANSWER_DEADLINE_S = 5.0
START_DEADLINE_S = 120.0
END_DEADLINE_S = 5.0
START_OR_UNSET = "start the cluster, or unset RAY_ADDRESS: a run then starts a Ray of its own"


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names; None where a run starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def obstacles() -> list[str]:
    """What would keep Ray from starting, as far as that is known without starting it. Imports nothing heavy."""
    problems = []
    limit = _address_space_gib()
    if limit is not None and limit < LEAST_ADDRESS_SPACE_GIB:
        problems.append(
            f"ulimit -v allows {limit:.1f} GiB of address space, and Ray needs {LEAST_ADDRESS_SPACE_GIB}; "
            "run ulimit -v unlimited first, or ask for a compute node: login nodes often set this limit"
        )
    address = cluster_address()
    if address not in (None, "auto") and "://" not in address and (why := _unanswered(address)):
        problems.append(why)
    if address is None and _temporary() is None:
        problems.append("Ray finds no folder for its sockets: neither TMPDIR nor /tmp can be written; set RAY_TMPDIR to a short path")
    return problems


def start_ray() -> None:
    """Ray on this machine, loopback only, without a dashboard; or the cluster that RAY_ADDRESS names, with its token.

    Whoever reaches a cluster without a token can run code there, so only RAY_AUTH_MODE=disabled joins one. Raises EngineError where it is not joined.
    """
    if problems := obstacles():
        raise EngineError("\n".join(problems))
    address = cluster_address()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the run is what the machine is for; at 15, any other work starves it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_rdt_fetch_fail_timeout_milliseconds", "300000")  # as long as a sync may take; by default a minute
    if address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray itself would join without
    else:
        # Ray's agents look so long for the head of a cluster that was killed with its driver, before they end too.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        os.environ.setdefault("UCX_NET_DEVICES", "lo")  # for rollout.transport: nixl, which would listen on every interface
        if not any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray keeps one in the home folder, which a container may not have
    import ray

    if ray.is_initialized():
        return
    # It tells how to switch off the token of a cluster that only this machine reaches: nothing that a user should do.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray._raylet.Config.initialize("")  # where ray was imported before, it has read those variables already
    # Ray replaces the loopback address by one that can be reached from elsewhere, unless this says that there is no elsewhere.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = address is not None
    if address:
        where: dict[str, Any] = {"address": _found() if address == "auto" else address}
    else:
        where = dict(address="local", num_cpus=num_cores(), include_dashboard=False, _node_ip_address="127.0.0.1", configure_logging=False)
        where["_temp_dir"] = str(_temporary())
    # Ray puts the current folder first in its workers' path, where a user's rewards.py would hide ours.
    with contextlib.chdir(Path(__file__).parents[2]), _signals_for_the_driver_alone(), _deadline():
        try:
            ray.init(log_to_driver=False, **where)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise EngineError(
                f"the Ray cluster of RAY_ADDRESS={address} was not joined: {one_line(error.__cause__ or error)[:300]}; RAY_AUTH_TOKEN must hold the "
                "cluster's token; RAY_AUTH_MODE=disabled joins a cluster that has none, where everybody who reaches it can run code"
            ) from error
    if not address:
        atexit.register(stop_ray)


def stop_ray() -> None:
    """Leave the cluster, or end the Ray that this process started, with all its processes. They block SIGTERM, by which Ray would ask them to
    end, and wait a second for each that does not."""
    if "ray" not in sys.modules:
        return
    import psutil
    import ray

    if not ray.is_initialized():
        return
    node = ray._private.worker._global_node  # None of a cluster that Ray Client speaks to
    ours = [info.process for infos in node.all_processes.values() for info in infos] if node is not None else []
    below = [child for process in ours for child in _descendants(process.pid)]
    for process in ours:
        process.terminate = process.kill
    ray.shutdown()
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(below, timeout=END_DEADLINE_S)


def _descendants(pid: int) -> list[Any]:
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@contextmanager
def _signals_for_the_driver_alone() -> Iterator[None]:
    """What is started within never sees SIGNALS: a batch system sends them to all processes of a job, a terminal when it is closed.

    They are blocked, not ignored: Ray's programs set handlers of their own, and what is blocked stays so in all that they start in turn. What
    arrives meanwhile waits for the end, when this process has its own handlers back: Ray sets some that end it at once.
    """
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    unblocked = set(SIGNALS) - signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                if handler is not None:
                    signal.signal(signum, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, unblocked)


@contextmanager
def _deadline() -> Iterator[None]:
    """Ends the process, with a line, where Ray neither starts nor fails: it waits in C, where no exception reaches it."""
    timer = threading.Timer(START_DEADLINE_S, _give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up() -> None:
    text = f"grpo: EngineError: Ray did not start within {START_DEADLINE_S:.0f} s; run grpo doctor, which looks for the reason\n"
    os.write(2, text.encode())
    for child in _descendants(os.getpid()):
        child.kill()
    os._exit(1)


def _found() -> str:
    """The cluster of RAY_ADDRESS=auto: one that runs on this machine. Raises EngineError where there is none: Ray itself would try for minutes."""
    from ray._private import services

    try:
        address = services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        address = None
    if address is None:
        raise EngineError(f"RAY_ADDRESS=auto: no Ray cluster runs on this machine; {START_OR_UNSET}")
    if why := _unanswered(address):
        raise EngineError(f"RAY_ADDRESS=auto: {why}")
    return str(address)


def _unanswered(address: str) -> str | None:
    """What is wrong with the address of a cluster; None where it takes connections. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_DEADLINE_S):
            return None
    except (ValueError, OverflowError):
        return f"the address of the Ray cluster, {address!r}, is not HOST:PORT; write RAY_ADDRESS=HOST:PORT, or unset it"
    except OSError as error:
        return f"no Ray cluster answers at {address} ({error.strerror or error}); {START_OR_UNSET}"


def _temporary() -> Path | None:
    """Where Ray keeps logs and sockets: RAY_TMPDIR or TMPDIR as Ray itself would, unless the path is too long for a socket or can't be written."""
    asked = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for folder in (Path(asked).absolute() / "ray", Path("/tmp/ray"), Path(f"/tmp/ray-{os.getuid()}")):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if len(os.fsencode(folder)) <= LONGEST_TEMPORARY and there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            return folder
    return None


def _address_space_gib() -> float | None:
    if sys.platform != "linux":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit / 2**30
