"""wrk, the load generator of closed loops: one thread in C, as good as never the bottleneck.

`benchmarks.load_generator` says how much it can do.
"""

import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.local.process import Unavailable

CONNECTIONS = 64
SECONDS = 8
REGISTER = Path(__file__).with_name("register.lua")
GET = Path(__file__).with_name("get.lua")


@dataclass(frozen=True)
class Done:
    """What a run came to."""

    requests: int
    per_second: float
    core_share: float
    """What wrk itself took of one core."""


def get(url: str, path: str, count: int, seconds: int = SECONDS) -> Done:
    """GET ``path``, whose ``%d`` is another number below ``count`` each time."""
    return _run(["--script", str(GET), url, "--", path, str(count)], seconds)


def register(url: str, vessel: str, prefix: str, seconds: int = SECONDS, *, keys: bool = False) -> Done:
    """Register equipment whose codes begin with ``prefix``, which no other run may use.

    With ``keys`` every request carries an Idempotency-Key of its own.
    """
    arguments = [prefix, vessel, *(["keys"] if keys else [])]
    return _run(["--script", str(REGISTER), url, "--", *arguments], seconds)


def _run(arguments: list[str], seconds: int) -> Done:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise Unavailable("wrk is not installed (Debian's package of that name)")
    command = [wrk, "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [*command, *arguments], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    report = run.stdout
    rate = re.search(r"Requests/sec:\s*([\d.]+)", report)
    total = re.search(r"(\d+) requests in", report)
    # A run in which something failed is not a measurement.
    if rate is None or total is None or re.search(r"Non-2xx|Socket errors", report):
        raise RuntimeError(f"{' '.join(run.args)}:\n{report}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(int(total[1]), float(rate[1]), took / seconds)
