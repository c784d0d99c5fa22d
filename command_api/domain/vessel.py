"""The rules of a vessel."""

from typing import Self

from command_api.domain.aggregate import Aggregate
from command_api.domain.refusals import Refused
from events.state import VesselState, vessel_after
from events.vessel import (
    VesselDecommissioned,
    VesselEvent,
    VesselRecommissioned,
    VesselRegistered,
    VesselRenamed,
)


class Vessel(Aggregate[VesselState, VesselEvent]):
    """One vessel of the fleet: in service, or decommissioned."""

    kind = "vessel"
    state_type = VesselState

    @staticmethod
    def fold(state: VesselState | None, event: VesselEvent) -> VesselState:
        """See `events.state.vessel_after`."""
        return vessel_after(state, event)

    @classmethod
    def register(cls, code: str, name: str | None, reason: str | None = None) -> Self:
        """Let a vessel join the fleet. That its code is unique is the event store's to say."""
        vessel = cls(cls.stream_of(code))
        vessel.record(VesselRegistered(code=code, name=name, reason=reason))
        return vessel

    def rename(self, name: str, reason: str | None = None) -> None:
        """Give the vessel another name. The name that it has: nothing happens."""
        if self.state.name != name:
            self.check_is_in_service()
            self.record(VesselRenamed(name=name, reason=reason))

    def decommission(self, reason: str | None = None) -> None:
        """Take the vessel out of service. Already decommissioned: nothing happens."""
        if self.state.status == "active":
            self.record(VesselDecommissioned(reason=reason))

    def recommission(self, reason: str | None = None) -> None:
        """Bring the vessel back into service. Not decommissioned: nothing happens."""
        if self.state.status == "decommissioned":
            self.record(VesselRecommissioned(reason=reason))

    def check_is_in_service(self) -> None:
        """Refuse what a decommissioned vessel does not take: new or transferred equipment, another name."""
        if self.state.status == "decommissioned":
            raise Refused(
                "vessel-decommissioned", f"vessel {self.code} is decommissioned", vessel_code=self.code
            )
