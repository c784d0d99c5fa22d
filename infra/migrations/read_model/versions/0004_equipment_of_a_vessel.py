"""One index of a vessel's equipment by code, in which a status is found without a look at the table."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        """
        DROP INDEX equipment_vessel_idx;
        DROP INDEX equipment_active_idx;
        CREATE INDEX equipment_vessel_idx ON equipment (vessel_code, code, status);
        """
    )
