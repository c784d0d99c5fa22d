"""The read model: one table per resource, the event log, and how far each has got.

Names carry no schema: `infra.migrations.migrate_copy` makes the same tables beside the live ones.
"""

from alembic import op

from infra.migrations import grant_read_model

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE checkpoints (
            name text PRIMARY KEY,
            position bigint NOT NULL DEFAULT 0,
            epoch integer NOT NULL DEFAULT 1,
            stopped_position bigint,
            stopped_type text,
            stopped_cause text
        );
        COMMENT ON TABLE checkpoints IS
            'Up to which position each projection has been written: ''tables'' (vessels, equipment, operations) and '
            '''event_log''; epoch is that of the last event. Where one has stopped: at which event, and why.';
        INSERT INTO checkpoints (name) VALUES ('tables'), ('event_log');

        CREATE TABLE head (
            is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
            position bigint NOT NULL DEFAULT 0,
            occurred_at timestamptz,
            epoch integer NOT NULL DEFAULT 1,
            observed_at timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE head IS
            'The last position of the event store, as the projector observed it (every second).';
        INSERT INTO head DEFAULT VALUES;

        CREATE TABLE epochs (
            epoch integer PRIMARY KEY,
            from_position bigint NOT NULL,
            opened_at timestamptz NOT NULL
        );

        CREATE TABLE vessels (
            code text COLLATE "C" PRIMARY KEY,
            name text,
            status text NOT NULL,
            active integer NOT NULL DEFAULT 0,
            inactive integer NOT NULL DEFAULT 0,
            version bigint NOT NULL,
            position bigint NOT NULL
        );
        COMMENT ON COLUMN vessels.position IS 'Of the last change, that of the counts included.';

        CREATE TABLE equipment (
            code text COLLATE "C" PRIMARY KEY,
            vessel_code text COLLATE "C" NOT NULL,
            name text NOT NULL,
            location text NOT NULL,
            attributes jsonb NOT NULL,
            status text NOT NULL,
            version bigint NOT NULL,
            position bigint NOT NULL
        );
        CREATE INDEX equipment_vessel_idx ON equipment (vessel_code, code);
        CREATE INDEX equipment_active_idx ON equipment (vessel_code, status, code);

        CREATE TABLE operations (
            id text COLLATE "C" PRIMARY KEY,
            equipment_code text COLLATE "C" NOT NULL,
            vessel_code text COLLATE "C" NOT NULL,
            type text NOT NULL,
            cost numeric(20, 4) NOT NULL,
            currency text NOT NULL,
            description text,
            performed_at timestamptz NOT NULL,
            voided boolean NOT NULL,
            version bigint NOT NULL,
            position bigint NOT NULL
        );
        -- Lists of operations are paged by (performed_at, id), of everything, of a vessel, of a piece of equipment.
        CREATE INDEX operations_performed_idx ON operations (performed_at, id);
        CREATE INDEX operations_equipment_idx ON operations (equipment_code, performed_at, id);
        CREATE INDEX operations_vessel_idx ON operations (vessel_code, performed_at, id);

        CREATE TABLE event_log (
            position bigint PRIMARY KEY,
            previous_position bigint NOT NULL,
            previous_of_type bigint NOT NULL,
            epoch integer NOT NULL,
            stream text COLLATE "C" NOT NULL,
            version bigint NOT NULL,
            type text NOT NULL,
            occurred_at timestamptz NOT NULL,
            actor text NOT NULL,
            auth_type text NOT NULL,
            correlation_id text NOT NULL,
            causation_id text,
            traceparent text,
            data json NOT NULL
        );
        COMMENT ON COLUMN event_log.data IS 'Exactly as stored: json keeps the text, jsonb would not.';
        CREATE INDEX event_log_stream_idx ON event_log (stream, version);
        CREATE INDEX event_log_type_idx ON event_log (type, position);
        """
    )
    grant_read_model()
