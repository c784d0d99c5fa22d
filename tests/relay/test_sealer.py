"""The sealer: every event in one tree, signed within the second, whatever is killed, stopped, lost or down."""

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psycopg
import pytest
from aio_pika.abc import AbstractConnection, AbstractQueue

from command_api.audit_log import AuditLog, SealingRefused, Tree, sealing_pool
from events.equipment import EquipmentDeactivated
from infra.audit import keys
from infra.audit.note import NoteInvalid, Signer, opened
from infra.audit.tree import leaf_hash
from infra.broker import AUDIT_EXCHANGE, declare_audit_exchange
from infra.leadership import LeadershipLost
from tests.broker.proxy import proxy_before
from tests.projector.processes import DEADLINE, Process, running, until
from tests.projector.store import Store, as_role
from tests.relay.audit import ORIGIN, check_log, notes, published, recorded_keys, sealed, verifiers

Sealers = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
def store(database: str) -> Store:
    return Store(database)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "audit.key"


@pytest.fixture
def sealer(database: str, key_file: Path) -> Sealers:
    """Starts relays that seal, without a broker unless one is given: ``async with sealer() as process``."""
    url = as_role(database, "fpso_relay")

    def start(**settings: str) -> AbstractAsyncContextManager[Process]:
        return running(
            "command_api.relay",
            database_url=url,
            **{"audit_key_file": str(key_file), **settings},
        )

    return start


@pytest.fixture
async def audit_log(database: str) -> AsyncIterator[AuditLog]:
    """The schema as the relay's role may use it, here in the test's own process."""
    async with sealing_pool(as_role(database, "fpso_relay")) as pool:
        yield AuditLog(pool)


async def says(process: Process, check: str, part: str) -> bool:
    return part in (await process.checks()).get(check, "")


async def until_sealed(store: Store, position: int, what: str, deadline: float = DEADLINE) -> None:
    await until(lambda: sealed(store) == position, what, deadline)


def text_of(path: Path) -> str:
    return path.read_text()


def write(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


# --- sealing ------------------------------------------------------------------------------------------------


async def test_everything_is_sealed_and_followed_in_one_tree(
    store: Store, sealer: Sealers, key_file: Path
) -> None:
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(600)))
    store.burn("equipment/E1", EquipmentDeactivated())
    last = store.append(("equipment/E1", EquipmentDeactivated(reason="Überholung 🛠")))
    async with sealer() as process:
        await until_sealed(store, last, "what was there is sealed")
        for number in range(3):
            last = store.register_equipment(f"NEW{number}")
            await until_sealed(store, last, "the sealer follows")
        last = store.register_equipment("QUIET", notify=False)
        await until_sealed(store, last, "a poll stays under NOTIFY", deadline=5)
        assert await process.is_ready()
        assert await process.metric("fpso_sealer_leading") == 1
        await process.shows("fpso_sealer_position", last)
        await process.shows("fpso_sealer_tree_size", 606)
        await process.shows("fpso_sealer_checkpoints_total", len(notes(store)))
        assert await process.terminate() == 0
    await check_log(store, verifiers(key_file))


async def test_killed_in_the_middle_the_next_goes_on(store: Store, sealer: Sealers, key_file: Path) -> None:
    store.register_vessel()
    last = store.register_equipment(*(f"E{number}" for number in range(9000)))
    async with sealer() as first:
        await until(lambda: sealed(store) > 0, "it has begun")
        await first.kill()
    assert sealed(store) < last, "it was in the middle"
    async with sealer():
        await until_sealed(store, last, "the next goes on")
    await check_log(store, verifiers(key_file))


async def test_two_processes_never_fork_the_tree(store: Store, sealer: Sealers, key_file: Path) -> None:
    store.register_vessel()
    async with sealer() as first:
        await until_sealed(store, 1, "the first seals")
        async with sealer() as second:
            await until(second.is_ready, "the second stands by")
            assert await second.metric("fpso_sealer_leading") == 0
            last = store.register_equipment("A")
            await until_sealed(store, last, "one of them seals")
            await first.kill()
            last = store.register_equipment("B")
            await until_sealed(store, last, "the second goes on")
            assert await second.metric("fpso_sealer_leading") == 1
    await check_log(store, verifiers(key_file))


async def test_the_transaction_of_a_former_leader_changes_nothing(store: Store, audit_log: AuditLog) -> None:
    [(term,)] = store.query("UPDATE event_store.leaders SET term = 7 WHERE name = 'sealer' RETURNING term")
    signer = Signer.generate(ORIGIN)
    tree = Tree()
    tree.add([leaf_hash(b"a")], [1])
    for former, before in [(term - 1, 0), (term + 1, 0), (term, 1)]:
        with pytest.raises(LeadershipLost):
            await audit_log.commit(former, before, tree, tree.root, "note")
        with pytest.raises(LeadershipLost):
            await audit_log.record_keys(former, before, [signer.verifier])
    for table in ("audit.tiles", "audit.checkpoints", "audit.keys"):
        assert store.query(f"SELECT 1 FROM {table}") == []
    await audit_log.commit(term, 0, tree, tree.root, "note")
    assert sealed(store) == 1


async def test_a_commit_waits_for_whoever_takes_the_lead(store: Store, audit_log: AuditLog) -> None:
    tree = Tree()
    tree.add([leaf_hash(b"a")], [1])
    with psycopg.connect(store.database) as successor:
        successor.execute("UPDATE event_store.leaders SET term = term + 1 WHERE name = 'sealer'")
        commit = asyncio.create_task(audit_log.commit(0, 0, tree, tree.root, "note"))
        await until(
            lambda: bool(store.query("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")),
            "the former leader is at it",
        )
    with pytest.raises(LeadershipLost):
        await commit
    assert store.query("SELECT 1 FROM audit.tiles") == []


async def test_an_epoch_has_an_origin_of_its_own_in_the_same_tree(
    store: Store, sealer: Sealers, key_file: Path
) -> None:
    store.register_vessel()
    async with sealer():
        await until_sealed(store, 1, "the first epoch is sealed")
        store.query("INSERT INTO event_store.epochs VALUES (2, 2, now())")
        begun = "SELECT tree_size FROM audit.checkpoints WHERE epoch = 2"
        await until(lambda: store.query(begun) == [(1,)], "the second begins with what was there")
        last = store.register_equipment("A", "B")
        await until_sealed(store, last, "the second is sealed")
    [first] = keys.read(key_file)
    second = first.named(f"{ORIGIN}/2")
    await check_log(store, [first.verifier, second.verifier])
    assert recorded_keys(store) == {str(first.verifier): False, str(second.verifier): True}
    async with sealer():
        last = store.register_equipment("C")
        await until_sealed(store, last, "and goes on after a restart")


@pytest.mark.parametrize("state", [b"{", None])
async def test_it_stops_loudly_at_what_cannot_be_sealed(
    store: Store, sealer: Sealers, state: bytes | None
) -> None:
    """Not JSON at all, and a number that has no canonical form."""
    big = b'{"occurred_at":"2024-05-01T00:00:00Z","actor":"a","auth_type":"system","correlation_id":"c","data":{"n":%d}}'
    store.register_vessel()
    broken = store.append_raw("thing/1", "fpso.thing.happened.v1", state or big % 2**60)
    store.register_equipment("B")
    async with sealer() as process:
        await until(lambda: says(process, "sealing", f"stopped at position {broken}"), "it says so")
        assert sealed(store) == broken - 1, "what lies before is sealed"
        assert await process.metric("fpso_sealer_stopped") == 1


async def test_nothing_is_signed_on_top_of_a_tree_that_was_changed(
    store: Store, sealer: Sealers, key_file: Path
) -> None:
    store.register_vessel()
    async with sealer():
        await until_sealed(store, 1, "it seals")
    store.query("UPDATE audit.tiles SET hashes = sha256('another')")
    store.register_equipment("A")
    async with sealer() as process:
        await until(lambda: says(process, "sealing", "another root"), "it says so")
    # With a checkpoint to match, which nobody could sign.
    [(root,)] = store.query("SELECT sha256('another')")
    store.query("UPDATE audit.checkpoints SET root = %s", root)
    async with sealer() as process:
        await until(lambda: says(process, "sealing", "something else than its note"), "it says so")
    assert sealed(store) == 1


async def test_a_tree_that_contradicts_itself_is_not_extended(store: Store, audit_log: AuditLog) -> None:
    tree = Tree()
    tree.add([leaf_hash(b"a"), leaf_hash(b"b"), leaf_hash(b"c")], [1, 2, 3])
    await audit_log.commit(0, 0, tree, tree.root, "note")
    resumed, newest = await audit_log.resumed()
    assert newest is not None
    assert (resumed.size, resumed.root, resumed.position) == (3, newest.root, 3)
    assert resumed.positions == {0: [1, 2, 3]}
    for change, cause in [
        ("UPDATE audit.tiles SET hashes = substr(hashes, 1, 64), positions = '{1,2}'", "2 hashes, not 3"),
        ("DELETE FROM audit.tiles", "0 hashes"),
        ("UPDATE event_store.leaders SET position = 2 WHERE name = 'sealer'", "up to position 2"),
        ("DELETE FROM audit.checkpoints", "newest checkpoint ends at 0"),
    ]:
        store.query(change)
        with pytest.raises(SealingRefused, match=cause):
            await audit_log.resumed()


# --- keys ---------------------------------------------------------------------------------------------------


async def test_the_first_sealer_makes_a_key_for_itself_alone(
    store: Store, sealer: Sealers, key_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with sealer() as process:
        await until(lambda: len(recorded_keys(store)) == 1, "the key is recorded before anything is sealed")
        store.register_vessel()
        await until_sealed(store, 1, "it seals")
        assert await process.terminate() == 0
    assert mode_of(key_file) == 0o600
    [signer] = keys.read(key_file)
    assert recorded_keys(store) == {str(signer.verifier): True}
    logged = capfd.readouterr()
    assert signer.verifier.key_id.hex() in logged.out, "the log names the key"
    secret = signer.private_key.split("+")[-1]
    assert secret not in logged.out + logged.err
    assert "PRIVATE" not in logged.out + logged.err


async def test_a_key_is_replaced_by_putting_another_in_front(
    store: Store, sealer: Sealers, key_file: Path
) -> None:
    store.register_vessel()
    async with sealer() as process:
        await until_sealed(store, 1, "the old key signs")
        [old] = verifiers(key_file)
        keys.put_in_front(key_file, Signer.generate(ORIGIN))
        [new, _] = verifiers(key_file)
        await until(lambda: recorded_keys(store) == {str(old): False, str(new): True}, "without a restart")
        store.register_equipment("A")
        await until_sealed(store, 2, "both sign")
        write(key_file, text_of(key_file).splitlines()[0])
        store.register_equipment("B")
        await until_sealed(store, 3, "the new one signs alone")
        assert await process.is_ready()
    one, both, other = [note for _, note in notes(store)]
    assert opened(one, [old, new])[1] == {old}
    assert opened(both, [old, new])[1] == {old, new}
    assert opened(other, [old, new])[1] == {new}
    with pytest.raises(NoteInvalid, match="no signature of a known key"):
        opened(other, [old])
    await check_log(store, [old, new])


async def test_a_lost_key_is_never_replaced(store: Store, sealer: Sealers, key_file: Path) -> None:
    store.register_vessel()
    async with sealer() as process:
        await until_sealed(store, 1, "it seals")
        mine = text_of(key_file)
        remove(key_file)
        store.register_equipment("A")
        await until(lambda: says(process, "audit-key", "cannot read"), "it says so while it runs")
        keys.create(key_file, Signer.generate(ORIGIN))
        await until(lambda: says(process, "audit-key", "put it back"), "another key is no help")
        assert sealed(store) == 1
        write(key_file, mine)
        await until_sealed(store, 2, "it goes on with the key that is known")
        await until(process.is_ready, "and is ready again")
        remove(key_file)
        assert await process.terminate() == 0
    async with sealer() as process:
        await until(lambda: says(process, "sealing", "cannot read"), "nor at the next start")
    with pytest.raises(keys.KeyFileInvalid, match="cannot read"):
        keys.read(key_file)


async def test_a_key_file_for_everybody_is_refused(store: Store, sealer: Sealers, key_file: Path) -> None:
    keys.create(key_file, Signer.generate(ORIGIN))
    set_mode(key_file, 0o644)
    store.register_vessel()
    async with sealer() as process:
        await until(lambda: says(process, "audit-key", "chmod 600"), "it says so")
        assert sealed(store) == 0
        set_mode(key_file, 0o600)
        await until_sealed(store, 1, "it seals")


async def test_keys_of_another_origin_are_refused(store: Store, sealer: Sealers, key_file: Path) -> None:
    keys.create(key_file, Signer.generate("elsewhere.example/audit"))
    async with sealer() as process:
        await until(lambda: says(process, "audit-key", "FPSO_AUDIT_ORIGIN is fpso.local/audit"), "it says so")
    store.register_vessel()
    async with sealer(audit_origin="elsewhere.example/audit"):
        await until_sealed(store, 1, "it seals under its own name")
    await check_log(store, verifiers(key_file), "elsewhere.example/audit")


async def test_an_origin_that_no_note_could_carry_stops_the_start(sealer: Sealers) -> None:
    async with sealer(audit_origin="two words") as process:
        await until(lambda: not process.is_running, "it does not start")


async def test_without_a_key_file_nothing_is_sealed(store: Store, sealer: Sealers) -> None:
    store.register_vessel()
    async with sealer(audit_key_file="") as process:
        await until(process.is_ready, "it is ready")
        assert await process.terminate() == 0
    assert recorded_keys(store) == {}
    assert sealed(store) == 0


# --- publishing ---------------------------------------------------------------------------------------------


async def witnessing(connection: AbstractConnection) -> AbstractQueue:
    """A queue that gets every checkpoint from now on."""
    await declare_audit_exchange(connection)
    channel = await connection.channel()
    queue = await channel.declare_queue("witness", durable=True)
    await queue.bind(AUDIT_EXCHANGE)
    return queue


async def received(queue: AbstractQueue, count: int) -> list[tuple[int, str]]:
    """The next checkpoints, as size and note."""
    checkpoints: list[tuple[int, str]] = []
    async with asyncio.timeout(20), queue.iterator(no_ack=True) as messages:
        async for message in messages:
            assert message.content_type == "text/plain"
            assert message.delivery_mode == 2, "it is persistent"
            checkpoints.append((int(message.message_id or 0), message.body.decode()))
            if len(checkpoints) == count:
                break
    return checkpoints


async def test_every_checkpoint_is_published_also_after_the_broker_was_down(
    store: Store, sealer: Sealers, broker_url: str, connection: AbstractConnection
) -> None:
    queue = await witnessing(connection)
    async with proxy_before(broker_url) as (proxy, url), sealer(amqp_url=url) as process:
        store.register_vessel()
        await until(lambda: published(store) == 1, "it is published")
        proxy.cut()
        for code in ("A", "B", "C"):
            last = store.register_equipment(code)
            await until_sealed(store, last, "sealing goes on")
        assert published(store) == 1
        proxy.restore()
        await until(lambda: published(store) == 4, "the rest is published")
        await until(process.is_ready, "it is ready again")
    assert await received(queue, 4) == notes(store)


async def test_without_anybody_bound_it_goes_on(
    store: Store, sealer: Sealers, broker_url: str, connection: AbstractConnection
) -> None:
    async with sealer(amqp_url=broker_url):
        store.register_vessel()
        await until(lambda: published(store) == 1, "it is published to nobody")
        queue = await witnessing(connection)
        store.register_equipment("A")
        assert await received(queue, 1) == notes(store)[1:]


async def test_what_was_sealed_without_a_broker_is_published_with_one(
    store: Store, sealer: Sealers, broker_url: str, connection: AbstractConnection
) -> None:
    async with sealer():
        for code in ("A", "B"):
            last = store.register_vessel(code)
            await until_sealed(store, last, "sealed without a broker")
    assert published(store) == 0
    queue = await witnessing(connection)
    async with sealer(amqp_url=broker_url):
        assert await received(queue, 2) == notes(store)


@pytest.mark.parametrize(
    ("name", "cause"),
    [("audit.key", "has a key of elsewhere.example/audit"), ("x" * 300, "File name too long")],
    ids=["of another log", "of no file"],
)
async def test_a_sealer_that_cannot_go_on_leaves_the_relay_in_peace(
    store: Store, sealer: Sealers, broker_url: str, key_file: Path, name: str, cause: str
) -> None:
    keys.create(key_file, Signer.generate("elsewhere.example/audit"))
    store.register_vessel()
    async with sealer(amqp_url=broker_url, audit_key_file=str(key_file.with_name(name))) as process:
        await until(lambda: says(process, "sealing", "stopped"), "the sealer cannot go on")
        await until(lambda: says(process, "audit-key", cause), "and says why")
        last = store.register_equipment("A")
        relay = "SELECT position FROM event_store.leaders WHERE name = 'relay'"
        await until(lambda: store.query(relay) == [(last,)], "the relay goes on")
        assert sealed(store) == 0


# --- rights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit.checkpoints SET note = ''",
        "DELETE FROM audit.checkpoints",
        "TRUNCATE audit.checkpoints",
        "DELETE FROM audit.tiles",
        "TRUNCATE audit.tiles",
        "DELETE FROM audit.keys",
        "INSERT INTO event_store.leaders VALUES ('another', 0, 0)",
    ],
)
def test_the_relay_s_role_cannot_take_back_what_was_signed(database: str, statement: str) -> None:
    with (
        psycopg.connect(as_role(database, "fpso_relay")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


@pytest.mark.parametrize("role", ["fpso_command", "fpso_projector", "fpso_query"])
@pytest.mark.parametrize("table", ["tiles", "checkpoints", "keys"])
def test_nobody_else_writes_the_log(database: str, role: str, table: str) -> None:
    with psycopg.connect(as_role(database, role), autocommit=True) as connection:
        for statement in (f"DELETE FROM audit.{table}", f"INSERT INTO audit.{table} DEFAULT VALUES"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
