"""The library's own tests of a recorder, against ours and a real PostgreSQL."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from eventsourcing.tests.persistence import (
    ApplicationRecorderTestCase,
    NonInterleavingNotificationIDsBaseCase,
)

from infra.event_store.application import Datastore
from infra.event_store.recorder import Recorder


class OurRecorder:
    """Gives the library's test cases a recorder on a database of their own."""

    database: str
    datastore: Datastore

    @pytest.fixture(autouse=True)
    def _database(self, database: str) -> Iterator[None]:
        self.datastore = Datastore(database, pool_size=20)
        self.database = database
        yield
        self.datastore.close()

    def new_originator_id(self) -> str:
        return str(uuid4())

    def create_recorder(self) -> Recorder:
        return Recorder(self.datastore)


class TestApplicationRecorder(OurRecorder, ApplicationRecorderTestCase[Recorder]):
    """Inserting, selecting, conflicts, and concurrent readers and writers."""


class TestNonInterleavingNotificationIDs(OurRecorder, NonInterleavingNotificationIDsBaseCase):
    """What is inserted together has positions together."""


# Imported for the subclasses above; by themselves they are abstract.
del ApplicationRecorderTestCase, NonInterleavingNotificationIDsBaseCase
