"""First tables: images, captions, verdicts, versions, models, runs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "caption_shards",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("num_captions", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_caption_shards"),
        sa.UniqueConstraint("digest", name="uq_caption_shards_digest"),
    )
    op.create_table(
        "captions",
        sa.Column("caption_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("generator", sa.Text(), nullable=True),
        sa.Column("decoding", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("caption_id", name="pk_captions"),
    )
    op.create_index("ix_captions_generator", "captions", ["generator"])
    op.create_index("ix_captions_key", "captions", ["key"])
    op.create_index("ix_captions_text", "captions", ["text"], postgresql_using="hash")
    op.create_table(
        "image_shards",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("images_digest", sa.Text(), nullable=False),
        sa.Column("num_images", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_image_shards"),
        sa.UniqueConstraint("digest", name="uq_image_shards_digest"),
    )
    op.create_table(
        "images",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("extension", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_images"),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("digest", name="uq_models_digest"),
    )
    op.create_index("ix_models_name", "models", ["name"])
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("key", "output", name="uq_runs_key"),
    )
    op.create_index("ix_runs_output", "runs", ["output"])
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("num_images", sa.Integer(), nullable=False),
        sa.Column("num_captions", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.UniqueConstraint("output", name="uq_versions_output"),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_index("ix_versions_name", "versions", ["name"])
    op.create_table(
        "entries",
        sa.Column("shard_id", sa.Integer(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("caption_id", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=True),
        sa.Column("itm_score", sa.Double(), nullable=True),
        sa.Column("itc_score", sa.Double(), nullable=True),
        sa.Column("kept", sa.Boolean(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["caption_id"], ["captions.caption_id"], name="fk_entries_caption_id"
        ),
        sa.ForeignKeyConstraint(["shard_id"], ["caption_shards.id"], name="fk_entries_shard_id"),
        sa.PrimaryKeyConstraint("shard_id", "row", name="pk_entries"),
    )
    op.create_index("ix_entries_caption_id", "entries", ["caption_id"])
    op.create_table(
        "records",
        sa.Column("shard_id", sa.Integer(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["images.key"], name="fk_records_key"),
        sa.ForeignKeyConstraint(["shard_id"], ["image_shards.id"], name="fk_records_shard_id"),
        sa.PrimaryKeyConstraint("shard_id", "row", name="pk_records"),
    )
    op.create_index("ix_records_key", "records", ["key"])
    op.create_index("ix_records_source", "records", ["source"], postgresql_using="hash")
    op.create_table(
        "run_inputs",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_inputs_run_id"),
        sa.PrimaryKeyConstraint("run_id", "role", "position", name="pk_run_inputs"),
    )
    op.create_index("ix_run_inputs_digest", "run_inputs", ["digest"])
    op.create_table(
        "version_shards",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("image_shard_id", sa.Integer(), nullable=False),
        sa.Column("caption_shard_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["caption_shard_id"], ["caption_shards.id"], name="fk_version_shards_caption_shard_id"
        ),
        sa.ForeignKeyConstraint(
            ["image_shard_id"], ["image_shards.id"], name="fk_version_shards_image_shard_id"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name="fk_version_shards_version_id"
        ),
        sa.PrimaryKeyConstraint("version_id", "position", name="pk_version_shards"),
    )
    op.create_index("ix_version_shards_caption_shard_id", "version_shards", ["caption_shard_id"])
    op.create_index("ix_version_shards_image_shard_id", "version_shards", ["image_shard_id"])


def downgrade() -> None:
    """Drop them, those that refer to others first."""
    for table in (
        "version_shards",
        "run_inputs",
        "records",
        "entries",
        "versions",
        "runs",
        "models",
        "images",
        "image_shards",
        "captions",
        "caption_shards",
    ):
        op.drop_table(table)
