"""The provable log: one Merkle tree over all events, its signed checkpoints, the keys that signed them."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE SCHEMA audit;

        CREATE TABLE audit.tiles (
            level smallint NOT NULL,
            number bigint NOT NULL,
            hashes bytea NOT NULL,
            positions bigint[],
            first_position bigint,
            PRIMARY KEY (level, number),
            CHECK (octet_length(hashes) BETWEEN 32 AND 8192 AND octet_length(hashes) % 32 = 0),
            CHECK ((level = 0) = (positions IS NOT NULL)),
            CHECK (positions IS NULL OR cardinality(positions) * 32 = octet_length(hashes)),
            CHECK (positions IS NULL OR first_position = positions[1])
        );
        COMMENT ON TABLE audit.tiles IS
            'The hashes of the Merkle tree in tiles of 256 (C2SP tlog-tiles); the last tile of a level may be partial. '
            'A tile of level 0 also has the positions of its leaves'' events.';
        CREATE UNIQUE INDEX tiles_first_position_idx ON audit.tiles (first_position) WHERE level = 0;

        CREATE TABLE audit.checkpoints (
            tree_size bigint PRIMARY KEY,
            root bytea NOT NULL,
            position bigint NOT NULL,
            epoch integer NOT NULL,
            note text NOT NULL,
            signed_at timestamptz NOT NULL DEFAULT clock_timestamp()
        );
        COMMENT ON TABLE audit.checkpoints IS
            'Every signed checkpoint (C2SP tlog-checkpoint); position is that of its last event.';

        CREATE TABLE audit.keys (
            verifier_key text PRIMARY KEY,
            is_current boolean NOT NULL,
            first_used_at timestamptz NOT NULL DEFAULT clock_timestamp()
        );
        COMMENT ON TABLE audit.keys IS
            'The public keys that checkpoints were ever signed with, in the form of C2SP signed-note.';
        CREATE UNIQUE INDEX keys_current_idx ON audit.keys (is_current) WHERE is_current;

        INSERT INTO event_store.leaders VALUES ('sealer', 0, 0), ('audit-exchange', 0, 0);
        COMMENT ON TABLE event_store.leaders IS
            'The checkpoint of each process that leads alone. It moves by compare-and-set on the term. ''relay'' has '
            'been published; ''stream'' is in the stream fpso.events.stream, which is filled anew where it was lost; '
            '''sealer'' is in the Merkle tree; ''audit-exchange'' is the size of the last tree whose checkpoint was '
            'published.';
        """
    )
    op.execute(
        """
        GRANT USAGE ON SCHEMA audit TO fpso_relay, fpso_query;
        GRANT SELECT, INSERT, UPDATE ON audit.tiles, audit.keys TO fpso_relay;
        GRANT SELECT, INSERT ON audit.checkpoints TO fpso_relay;
        GRANT SELECT ON audit.tiles, audit.checkpoints, audit.keys TO fpso_query;
        """
    )
