"""What does `--restarts n` do? The run is a process of its own, and is begun again, up to n times, where it ends as no run should."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ENDED_AS_IT_SHOULD = (0, 2, *(128 + signum for signum in PASSED_ON))  # done; bad input, which would be bad again; asked to stop


def run_again_until_done(arguments: Sequence[str], only_first: Sequence[str], restarts: int, is_kept: bool = False) -> tuple[int, str]:
    """Run `grpo` with ``arguments``, and ``only_first`` the first time; returns exit code and, with ``is_kept``, what it printed, of the last start.

    Every start goes on from the newest checkpoint. Signals are passed on, so that the run saves and ends.
    """
    is_asked_to_stop = False
    for attempt in range(restarts + 1):
        # A process group of its own: what a terminal sends to all of its processes must reach the run once, from here.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "grpo.cli", *arguments, *(only_first if attempt == 0 else [])],
            process_group=0,
            stdout=subprocess.PIPE if is_kept else None,
            text=True,
        )

        def pass_on(signum: int, frame: FrameType | None, child: subprocess.Popen[str] = child) -> None:
            nonlocal is_asked_to_stop
            is_asked_to_stop = True
            child.send_signal(signum)

        heard = [signum for signum in PASSED_ON if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN]  # nohup
        before = {signum: signal.signal(signum, pass_on) for signum in heard}
        try:
            printed = child.communicate()[0] or ""
            code = child.returncode
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
        if code in ENDED_AS_IT_SHOULD or is_asked_to_stop:
            break
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if attempt < restarts:
            print(f"grpo: the run {how}; begun again, restart {attempt + 1} of {restarts}", file=sys.stderr, flush=True)
    return (128 - code if code < 0 else code), printed
