"""The settings of every process: FPSO_* environment variables, read once at the start.

A bad or missing value stops the start with the variable's name; see `load`.
"""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from infra.secret_files import read_secrets

PositiveInt = Annotated[int, Field(ge=1)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _origin(text: str) -> str:
    """As a browser spells it: nothing else would ever be equal to it."""
    if re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", text) is None:
        raise ValueError(f"an origin is https://host or https://host:port in lower case, not {text!r}")
    return text


def _separated(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_separated)
]
"""Origins of web pages, separated by commas."""


class Settings(BaseSettings):
    """What every process needs to know."""

    model_config = SettingsConfigDict(env_prefix="FPSO_", frozen=True, env_ignore_empty=True)

    database_url: str
    """The event store, as the process's own role."""
    read_database_url: str | None = None
    """The read model, where it does not live beside the event store."""
    amqp_url: str | None = None
    """Without a broker the projector follows the event store."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    ops_host: str = "127.0.0.1"
    ops_port: Port = 0
    """/livez, /readyz and /metrics; 0 takes a free port."""
    drain_seconds: PositiveSeconds = 20.0
    """How long SIGTERM waits for what is in flight."""

    @property
    def read_model_url(self) -> str:
        """Where the read model lives."""
        return self.read_database_url or self.database_url


class ApiSettings(Settings):
    """What the two APIs need to know besides."""

    http_host: str = "127.0.0.1"
    http_port: Port = 8000
    auth: Literal["off", "on"] = "off"
    bind: str = "127.0.0.1"
    """The address that the gateway is bound to: without access control, nothing but loopback is safe."""
    oidc_issuer: str | None = None
    """Whose tokens are accepted, besides API keys; by default nobody's."""
    oidc_audience: str | None = None
    """For whom they must be."""
    oidc_roles_claim: str = "roles"
    oidc_vessels_claim: str = "fpso_vessels"
    cors_origins: Origins = ()
    """The sites whose pages may read answers in a browser."""
    pool_size: PositiveInt = 8
    drain_lead_seconds: Annotated[float, Field(ge=0)] = 0.0
    """After SIGTERM it is served for so long while /readyz says no: until the gateway sends nothing more."""

    @model_validator(mode="after")
    def _exposed_only_with_access_control(self) -> Self:
        if self.auth == "off" and not is_loopback(self.bind):
            raise ValueError("FPSO_AUTH=off is refused unless FPSO_BIND is a loopback address")
        return self

    @model_validator(mode="after")
    def _open_to_pages_only_with_access_control(self) -> Self:
        if self.auth == "off" and self.cors_origins:
            raise ValueError("FPSO_CORS_ORIGINS is refused unless FPSO_AUTH=on")
        return self

    @model_validator(mode="after")
    def _issuer_with_audience(self) -> Self:
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            raise ValueError("FPSO_OIDC_ISSUER and FPSO_OIDC_AUDIENCE go together")
        if self.oidc_issuer is not None:
            check_issuer_url(self.oidc_issuer)
        return self


def check_issuer_url(url: str) -> None:
    """Raise ``ValueError`` where what an issuer says there could be changed on its way here."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError(f"an issuer has an https:// URL, not {url}")


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


S = TypeVar("S", bound=Settings)


def load(kind: type[S]) -> S:
    """The settings from the environment; a bad one ends the process with the variable's name and the cure."""
    read_secrets()
    try:
        return kind()
    except ValidationError as error:
        for problem in error.errors():
            variable = "".join(f"FPSO_{str(name).upper()}: " for name in problem["loc"][:1])
            print(f"cannot start: {variable}{problem['msg']}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def data_directory() -> Path:
    """Where `make run` keeps data, logs and its env file."""
    return Path(".fpso")
