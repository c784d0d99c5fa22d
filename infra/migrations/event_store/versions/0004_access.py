"""API keys: their digests, never the keys themselves."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        """
        CREATE SCHEMA access;

        CREATE TABLE access.keys (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name text COLLATE "C" NOT NULL CHECK (name ~ '^[!-~]{1,128}$'),
            digest bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
            roles text[] NOT NULL CHECK (cardinality(roles) > 0),
            vessels text[] CHECK (cardinality(vessels) > 0),
            created_at timestamptz NOT NULL DEFAULT now(),
            revoked_at timestamptz,
            CHECK (roles <@ ARRAY['viewer', 'operator', 'auditor', 'admin'])
        );
        COMMENT ON TABLE access.keys IS
            'API keys. A row stays for ever: who an actor in the events was can always be said.';
        COMMENT ON COLUMN access.keys.name IS 'The actor of what is done with the key.';
        COMMENT ON COLUMN access.keys.digest IS 'SHA-256 of the key: 256 random bits need no salt.';
        COMMENT ON COLUMN access.keys.vessels IS 'The codes that the grant is limited to; NULL for the fleet.';
        CREATE UNIQUE INDEX keys_name_once_valid ON access.keys (name) WHERE revoked_at IS NULL;

        CREATE FUNCTION access.tell_of_keys() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('access_keys', '');
            RETURN NULL;
        END $$;
        CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON access.keys
            FOR EACH STATEMENT EXECUTE FUNCTION access.tell_of_keys();
        REVOKE ALL ON FUNCTION access.tell_of_keys() FROM PUBLIC;

        CREATE FUNCTION access.refuse_to_restore() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'a key that was revoked stays so' USING ERRCODE = 'insufficient_privilege';
        END $$;
        CREATE TRIGGER revoked_for_ever BEFORE UPDATE ON access.keys
            FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL) EXECUTE FUNCTION access.refuse_to_restore();
        REVOKE ALL ON FUNCTION access.refuse_to_restore() FROM PUBLIC;

        GRANT USAGE ON SCHEMA access TO fpso_command, fpso_query, fpso_admin;
        GRANT SELECT ON access.keys TO fpso_command, fpso_query;
        GRANT SELECT, INSERT (name, digest, roles, vessels), UPDATE (revoked_at) ON access.keys TO fpso_admin;
        """
    )
