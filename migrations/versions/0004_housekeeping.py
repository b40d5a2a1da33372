"""Released files and what became of them; dead letters with key and headers, and where they were sent again."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

RELEASED = """
CREATE TABLE released_files (
    run_id TEXT NOT NULL,
    uri TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    version INTEGER NOT NULL,
    released_at TIMESTAMP WITH TIME ZONE NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT released_files_pkey PRIMARY KEY (run_id, uri)
);
CREATE INDEX released_files_pending_idx ON released_files (released_at) WHERE deleted_at IS NULL;
COMMENT ON TABLE released_files IS 'Projection of artifacts_released, and when the janitor had deleted each file.';
COMMENT ON COLUMN released_files.version IS 'of the event that released it';
COMMENT ON COLUMN released_files.deleted_at IS 'empty: still to be deleted';
"""

LETTERS = """
ALTER TABLE dead_letters ADD COLUMN key BYTEA;
ALTER TABLE dead_letters ADD COLUMN headers JSON;
COMMENT ON COLUMN dead_letters.key IS 'whole; empty where it had none, and in letters from before headers were kept';
COMMENT ON COLUMN dead_letters.headers IS 'pairs of name and base64, in order; empty: not kept';
CREATE TABLE letter_replays (
    replay_id BIGINT GENERATED ALWAYS AS IDENTITY,
    letter_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    asked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER,
    "offset" BIGINT,
    CONSTRAINT letter_replays_pkey PRIMARY KEY (replay_id),
    CONSTRAINT letter_replays_letter_id_fkey FOREIGN KEY (letter_id) REFERENCES dead_letters (letter_id)
);
CREATE INDEX letter_replays_letter_id_idx ON letter_replays (letter_id);
COMMENT ON TABLE letter_replays IS 'Who sent a dead letter onto its topic again, when, and where it landed.';
COMMENT ON COLUMN letter_replays."offset" IS 'empty: Kafka did not confirm; it may have arrived';
"""

READER = """
DO $$
BEGIN
    EXECUTE 'GRANT SELECT ON released_files, letter_replays TO training_fsm_reader';
EXCEPTION WHEN undefined_object THEN
    RAISE NOTICE 'no role training_fsm_reader: nothing granted';
END
$$;
"""


def upgrade() -> None:
    for script in (RELEASED, LETTERS, READER):
        op.execute(script)


def downgrade() -> None:
    op.execute("DROP TABLE letter_replays, released_files")
    op.execute("ALTER TABLE dead_letters DROP COLUMN headers, DROP COLUMN key")
