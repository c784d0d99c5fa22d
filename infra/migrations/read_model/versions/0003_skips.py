"""Events that somebody has decided to pass over, where they cannot be projected."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE skips (
            position bigint NOT NULL,
            epoch integer NOT NULL,
            stream text COLLATE "C" NOT NULL,
            version bigint NOT NULL,
            type text NOT NULL,
            cause text NOT NULL,
            reason text NOT NULL,
            actor text NOT NULL,
            skipped_at timestamptz NOT NULL DEFAULT now(),
            passed_over_at timestamptz,
            PRIMARY KEY (position, epoch)
        );
        COMMENT ON TABLE skips IS
            'Events that the tables may pass over where they cannot project them: who decided it, and why. Rows '
            'are only ever added. passed_over_at says that these tables have a hole there.';

        -- It is the owner who decides. The projector finds the decision, and says when it has acted on it.
        GRANT SELECT, UPDATE (passed_over_at) ON skips TO fpso_projector;
        """
    )
