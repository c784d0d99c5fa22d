"""The past of many: a row per state of each piece of equipment; and what says which time has been passed.

The history of read models that exist already is not in their tables, so these are filled from the event store
anew.
"""

from alembic import op

from infra.migrations import grant_read_model

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE equipment_versions (
            code text COLLATE "C" NOT NULL,
            version bigint NOT NULL,
            position bigint NOT NULL,
            valid_from timestamptz NOT NULL,
            valid_to timestamptz NOT NULL DEFAULT 'infinity',
            vessel_code text COLLATE "C" NOT NULL,
            left_vessel_code text COLLATE "C",
            name text NOT NULL,
            location text NOT NULL,
            attributes jsonb NOT NULL,
            status text NOT NULL,
            PRIMARY KEY (code, version)
        ) WITH (fillfactor = 90); -- a row is updated once, when the next one ends it
        COMMENT ON TABLE equipment_versions IS
            'A row per event of each piece of equipment: the state that it led to, from valid_from until before '
            'valid_to. left_vessel_code is the vessel that a transfer led away from.';
        CREATE INDEX equipment_versions_vessel_idx ON equipment_versions (vessel_code, code, valid_from);
        CREATE INDEX equipment_versions_vessel_position_idx ON equipment_versions (vessel_code, position);
        CREATE INDEX equipment_versions_left_idx ON equipment_versions (left_vessel_code, position)
            WHERE left_vessel_code IS NOT NULL;

        -- A page of a vessel's history begins with the state before it: the last events of each type until then.
        CREATE INDEX event_log_vessel_idx ON event_log (stream, type, position) WHERE stream LIKE 'vessel/%';

        ALTER TABLE checkpoints ADD COLUMN occurred_at timestamptz;
        COMMENT ON COLUMN checkpoints.occurred_at IS
            'Of the event at position: whatever happened by then has been written.';
        ALTER TABLE head ADD COLUMN complete_until timestamptz;
        COMMENT ON COLUMN head.complete_until IS
            'By the event store''s clock: whatever happened by then has a position up to head.position.';

        CREATE TABLE rebuild (
            is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
            position bigint NOT NULL,
            target bigint NOT NULL,
            seconds_left double precision,
            updated_at timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE rebuild IS 'How far the copy has got that is being built beside this one, while one is.';

        -- What was projected before this table was there would be missing in it.
        TRUNCATE vessels, equipment, operations;
        UPDATE checkpoints SET position = 0, epoch = 1, stopped_position = NULL, stopped_type = NULL,
            stopped_cause = NULL WHERE name = 'tables';
        UPDATE checkpoints SET occurred_at = (
            SELECT occurred_at FROM event_log WHERE event_log.position = checkpoints.position
        ) WHERE name = 'event_log';
        """
    )
    grant_read_model()
