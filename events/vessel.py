"""What can happen to a vessel."""

from typing import ClassVar

from events.event import EventData


class VesselRegistered(EventData):
    """A vessel joined the fleet."""

    type: ClassVar[str] = "fpso.vessel.registered.v1"
    examples: ClassVar = [
        {"code": "ODIN", "name": "FPSO Odin"},
        {"code": "VAL", "reason": "New in the fleet"},
    ]
    code: str
    """What the vessel is called for ever: 1 to 64 characters, case-sensitive."""
    name: str | None = None
    """Its name; absent where it has none."""


class VesselRenamed(EventData):
    """The vessel got another name."""

    type: ClassVar[str] = "fpso.vessel.renamed.v1"
    examples: ClassVar = [{"name": "FPSO Odin II"}, {"name": "FPSO Odin", "reason": "Sold"}]
    name: str
    """The name from now on."""


class VesselDecommissioned(EventData):
    """The vessel left service: it takes no new or transferred equipment and no new name."""

    type: ClassVar[str] = "fpso.vessel.decommissioned.v1"
    examples: ClassVar = [{"reason": "End of the field's life"}, {}]


class VesselRecommissioned(EventData):
    """The vessel came back into service."""

    type: ClassVar[str] = "fpso.vessel.recommissioned.v1"
    examples: ClassVar = [{"reason": "New contract"}, {}]


VesselEvent = VesselRegistered | VesselRenamed | VesselDecommissioned | VesselRecommissioned
