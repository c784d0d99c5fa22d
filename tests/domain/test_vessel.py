"""What may happen to a vessel."""

import pytest

from command_api.domain.refusals import Refused
from command_api.domain.vessel import Vessel
from events.vessel import (
    VesselDecommissioned,
    VesselEvent,
    VesselRecommissioned,
    VesselRegistered,
    VesselRenamed,
)
from tests.domain.grammar import decided, given

REGISTERED = VesselRegistered(code="VAL", name="FPSO Valhalla")


def vessel(*events: VesselEvent) -> Vessel:
    return given(Vessel, "vessel/VAL", *events)


def test_a_vessel_is_registered_with_or_without_a_name() -> None:
    assert decided(Vessel.register("VAL", "FPSO Valhalla")) == [REGISTERED]
    assert decided(Vessel.register("VAL", None)) == [VesselRegistered(code="VAL")]


def test_a_vessel_is_renamed_for_a_reason() -> None:
    valhalla = vessel(REGISTERED)
    valhalla.rename("FPSO Odin", "sold")
    assert decided(valhalla) == [VesselRenamed(name="FPSO Odin", reason="sold")]


def test_renaming_to_the_same_name_changes_nothing() -> None:
    valhalla = vessel(REGISTERED)
    valhalla.rename("FPSO Valhalla")
    assert decided(valhalla) == []


def test_a_vessel_is_decommissioned_once() -> None:
    valhalla = vessel(REGISTERED)
    valhalla.decommission()
    valhalla.decommission()
    assert decided(valhalla) == [VesselDecommissioned()]


def test_a_decommissioned_vessel_takes_no_new_name() -> None:
    valhalla = vessel(REGISTERED, VesselDecommissioned())
    with pytest.raises(Refused) as refused:
        valhalla.rename("FPSO Odin")
    assert refused.value.slug == "vessel-decommissioned"
    assert refused.value.offender == {"vessel_code": "VAL"}


def test_a_decommissioned_vessel_renamed_to_the_name_that_it_has_stays_as_it_is() -> None:
    valhalla = vessel(REGISTERED, VesselDecommissioned())
    valhalla.rename("FPSO Valhalla")
    assert decided(valhalla) == []


def test_a_vessel_is_recommissioned_and_takes_a_name_again() -> None:
    valhalla = vessel(REGISTERED, VesselDecommissioned())
    valhalla.recommission()
    valhalla.recommission()
    valhalla.rename("FPSO Odin")
    assert decided(valhalla) == [VesselRecommissioned(), VesselRenamed(name="FPSO Odin")]


def test_recommissioning_a_vessel_in_service_changes_nothing() -> None:
    valhalla = vessel(REGISTERED)
    valhalla.recommission()
    assert decided(valhalla) == []
