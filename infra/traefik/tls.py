"""TLS at the gateway: its certificate, what it speaks, and that browsers stay with it."""

from dataclasses import dataclass
from typing import Any

HSTS = "hsts"
"""The middleware that tells browsers to come by TLS only, from now on."""
YEAR = 365 * 24 * 60 * 60  # seconds
# Those of TLS 1.2 with forward secrecy and authenticated encryption; of TLS 1.3 there are no others.
CIPHERS = (
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
)


@dataclass(frozen=True)
class Certificate:
    """What the gateway proves itself with: files in PEM, as Traefik reads them."""

    file: str
    """The certificate, followed by those between it and the authority's."""
    key_file: str


def with_tls(rules: dict[str, Any], certificate: Certificate | None) -> dict[str, Any]:
    """Traefik's dynamic configuration ``rules``, with what `entry_point` needs."""
    if certificate is None:
        return rules
    http = rules["http"]
    hsts = {HSTS: {"headers": {"stsSeconds": YEAR}}}
    return {
        **rules,
        "http": {**http, "middlewares": {**http.get("middlewares", {}), **hsts}},
        "tls": {
            "certificates": [{"certFile": certificate.file, "keyFile": certificate.key_file}],
            "options": {"default": {"minVersion": "VersionTLS12", "cipherSuites": [*CIPHERS]}},
        },
    }


def entry_point(provider: str) -> dict[str, Any]:
    """What the entry point's ``http`` has besides; what is not TLS finds no route from then on."""
    return {"tls": {}, "middlewares": [f"{HSTS}@{provider}"]}
