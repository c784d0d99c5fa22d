"""An epoch signs a checkpoint of its own where it begins, of a tree that the one before may have signed too."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE audit.checkpoints DROP CONSTRAINT checkpoints_pkey, ADD PRIMARY KEY (tree_size, epoch);
        COMMENT ON COLUMN audit.checkpoints.epoch IS 'In which it was signed.';
        """
    )
