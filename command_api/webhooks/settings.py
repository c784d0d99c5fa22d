"""What the process that delivers, and whoever makes a webhook, go by."""

from typing import Annotated

from pydantic import BeforeValidator, Field, IPvAnyNetwork
from pydantic_settings import NoDecode

from infra.settings import PositiveSeconds, Settings


def _separated(text: object) -> object:
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


class DeliverySettings(Settings):
    """What the delivery of webhooks needs to know."""

    webhook_origin: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}$")] = "fpso.local"
    """The domain by which receivers know this system: they permit it, or not."""
    webhook_allowed_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_separated)] = ()
    """Networks (CIDR, separated by commas) that may be delivered to although they are not public."""
    webhook_attempt_seconds: PositiveSeconds = 15.0
    """How long one attempt may take, from looking up the host to its answer."""
    webhook_retry_seconds: PositiveSeconds = 5.0
    """The pause after the first failure, doubled with every other, up to an hour."""
