"""What can happen to a vessel."""

from typing import ClassVar

from events.event import EventData


class VesselRegistered(EventData):
    """A vessel joined the fleet."""

    type: ClassVar[str] = "fpso.vessel.registered.v1"
    code: str
    name: str | None = None


class VesselRenamed(EventData):
    """The vessel got another name."""

    type: ClassVar[str] = "fpso.vessel.renamed.v1"
    name: str


class VesselDecommissioned(EventData):
    """The vessel left service: it takes no new or transferred equipment and no new name."""

    type: ClassVar[str] = "fpso.vessel.decommissioned.v1"


class VesselRecommissioned(EventData):
    """The vessel came back into service."""

    type: ClassVar[str] = "fpso.vessel.recommissioned.v1"


VesselEvent = VesselRegistered | VesselRenamed | VesselDecommissioned | VesselRecommissioned
