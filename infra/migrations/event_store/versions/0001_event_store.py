"""The event store: stored events and snapshots, idempotency, the relay's checkpoint, epochs."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE event_store.stored_events (
            originator_id text COLLATE "C" NOT NULL,
            originator_version bigint NOT NULL,
            topic text,
            state bytea,
            notification_id bigserial,
            PRIMARY KEY (originator_id, originator_version)
        ) WITH (
            -- Append only: there is nothing to vacuum but the visibility map, which inserts keep up to date.
            autovacuum_analyze_scale_factor = 0.01,
            autovacuum_analyze_threshold = 1000
        );
        COMMENT ON TABLE event_store.stored_events IS
            'Every event there ever was. originator_id is the stream, originator_version the version in it, topic '
            'the event''s type, notification_id its position; state is UTF-8 JSON.';
        CREATE UNIQUE INDEX stored_events_notification_id_idx ON event_store.stored_events (notification_id);
        -- The last event of each type before a position: the chain of one type.
        CREATE INDEX stored_events_topic_idx ON event_store.stored_events (topic, notification_id);
        CREATE TYPE event_store.stored_event_text AS (
            originator_id text,
            originator_version bigint,
            topic text,
            state bytea
        );

        CREATE FUNCTION event_store.refuse_to_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'stored events are never changed or removed (% refused)', TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$;
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON event_store.stored_events
            FOR EACH ROW EXECUTE FUNCTION event_store.refuse_to_rewrite();
        CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON event_store.stored_events
            FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_to_rewrite();

        CREATE TABLE event_store.stored_snapshots (
            originator_id text COLLATE "C" NOT NULL,
            originator_version bigint NOT NULL,
            topic text,
            state bytea,
            PRIMARY KEY (originator_id, originator_version)
        );

        CREATE TABLE event_store.idempotency (
            actor text COLLATE "C" NOT NULL,
            key text COLLATE "C" NOT NULL,
            fingerprint bytea NOT NULL,
            status smallint NOT NULL,
            headers jsonb NOT NULL,
            body bytea NOT NULL,
            recorded_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (actor, key)
        );
        COMMENT ON TABLE event_store.idempotency IS
            'The first answer to each request with an Idempotency-Key, kept for 7 days.';
        CREATE INDEX idempotency_recorded_at_idx ON event_store.idempotency (recorded_at);

        CREATE TABLE event_store.leaders (
            name text PRIMARY KEY,
            term bigint NOT NULL,
            position bigint NOT NULL
        );
        COMMENT ON TABLE event_store.leaders IS
            'The checkpoint of each process that leads alone. It moves by compare-and-set on the term. ''relay'' has '
            'been published; ''stream'' is in the stream fpso.events.stream, which is filled anew where it was lost.';
        INSERT INTO event_store.leaders VALUES ('relay', 0, 0), ('stream', 0, 0);

        CREATE TABLE event_store.epochs (
            epoch integer PRIMARY KEY,
            from_position bigint NOT NULL,
            opened_at timestamptz NOT NULL
        );
        COMMENT ON TABLE event_store.epochs IS 'The epoch rises with every restore from a backup.';
        INSERT INTO event_store.epochs VALUES (1, 1, now());
        """
    )
    op.execute(
        """
        GRANT USAGE ON SCHEMA event_store TO fpso_command, fpso_relay, fpso_projector;
        GRANT SELECT, INSERT ON event_store.stored_events, event_store.stored_snapshots TO fpso_command;
        GRANT USAGE ON SEQUENCE event_store.stored_events_notification_id_seq TO fpso_command;
        GRANT SELECT, INSERT, UPDATE, DELETE ON event_store.idempotency TO fpso_command;
        GRANT DELETE ON event_store.stored_snapshots TO fpso_command;
        GRANT SELECT ON event_store.stored_events, event_store.epochs TO fpso_relay, fpso_projector;
        GRANT SELECT, UPDATE ON event_store.leaders TO fpso_relay;
        """
    )
