"""Passwords from files, as Docker and Kubernetes mount secrets, so that no environment has them in it."""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

SECRET_FILES = (
    "FPSO_DATABASE_URL_FILE",
    "FPSO_READ_DATABASE_URL_FILE",
    "FPSO_AMQP_URL_FILE",
    "FPSO_ROLE_PASSWORDS_FILE",
)
"""Each names the file that holds the value of the variable without ``_FILE``."""


def read_secrets(environment: MutableMapping[str, str] = os.environ) -> None:
    """Put what the files hold in its place; one that cannot be read ends the process, by its name.

    For this process only: the kernel goes on showing the environment that it was started with.
    """
    for variable in SECRET_FILES:
        if not (file := environment.pop(variable, "")):
            continue
        name = variable.removesuffix("_FILE")
        if environment.get(name):
            sys.exit(f"cannot start: {variable} and {name} are both set")
        try:
            environment[name] = Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            sys.exit(f"cannot start: {variable}: {error}")
