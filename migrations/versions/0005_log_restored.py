"""A log that was restored from a backup: it takes no event before the relay has compared it with what went out."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Not valid: what is in the log already was allowed when it was written.
TRANSITIONS = """
ALTER TABLE events DROP CONSTRAINT events_transition;
ALTER TABLE events ADD CONSTRAINT events_transition
    CHECK (coalesce(from_state, '') || '/' || type || '/' || coalesce(to_state, '') IN (
            'AWAITING_FEATURES/attempt_failed/AWAITING_FEATURES',
            'AWAITING_FEATURES/deadline_passed/AWAITING_FEATURES',
            'AWAITING_FEATURES/feature_request_answered/AWAITING_FEATURES',
            'AWAITING_FEATURES/features_lacking/AWAITING_FEATURES',
            'AWAITING_FEATURES/features_ready/TRAINING',
            'AWAITING_FEATURES/features_requested/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_cancelled/CANCELLED',
            'AWAITING_FEATURES/run_claimed/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_extended/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_failed/FAILED',
            'CANCELLED/artifacts_released/CANCELLED',
            'EVALUATING/artifacts_released/EVALUATING',
            'EVALUATING/attempt_failed/EVALUATING',
            'EVALUATING/evaluation_finished/EVALUATING',
            'EVALUATING/model_registered/REGISTERED',
            'EVALUATING/model_rejected/REJECTED',
            'EVALUATING/registration_intended/EVALUATING',
            'EVALUATING/run_cancelled/CANCELLED',
            'EVALUATING/run_claimed/EVALUATING',
            'EVALUATING/run_failed/FAILED',
            'FAILED/artifacts_released/FAILED',
            'FAILED/features_ready/FAILED',
            'FAILED/run_retried/AWAITING_FEATURES',
            'FAILED/run_retried/EVALUATING',
            'FAILED/run_retried/REQUESTED',
            'FAILED/run_retried/TRAINING',
            '/run_requested/REQUESTED',
            'PAUSED/artifacts_released/PAUSED',
            'PAUSED/run_cancelled/CANCELLED',
            'PAUSED/run_extended/PAUSED',
            'PAUSED/run_failed/FAILED',
            'PAUSED/run_resumed/TRAINING',
            'REGISTERED/artifacts_released/REGISTERED',
            'REJECTED/artifacts_released/REJECTED',
            'REJECTED/rejection_overridden/EVALUATING',
            'REJECTED/run_extended/TRAINING',
            'REQUESTED/attempt_failed/REQUESTED',
            'REQUESTED/features_requested/AWAITING_FEATURES',
            'REQUESTED/parent_resolved/AWAITING_FEATURES',
            'REQUESTED/run_cancelled/CANCELLED',
            'REQUESTED/run_claimed/REQUESTED',
            'REQUESTED/run_extended/REQUESTED',
            'REQUESTED/run_failed/FAILED',
            'TRAINING/artifacts_released/TRAINING',
            'TRAINING/attempt_failed/TRAINING',
            'TRAINING/checkpoint_saved/TRAINING',
            'TRAINING/data_frozen/TRAINING',
            'TRAINING/features_incomplete/AWAITING_FEATURES',
            'TRAINING/pause_requested/TRAINING',
            'TRAINING/run_cancelled/CANCELLED',
            'TRAINING/run_claimed/TRAINING',
            'TRAINING/run_extended/TRAINING',
            'TRAINING/run_failed/FAILED',
            'TRAINING/run_paused/PAUSED',
            'TRAINING/run_resumed/TRAINING',
            'TRAINING/training_finished/EVALUATING',
            'TRAINING/training_resumed/TRAINING',
            'TRAINING/training_started/TRAINING',
            '/champion_promoted/',
            '/command_refused/',
            '/log_restored/',
            '/message_dead_lettered/'
    )) NOT VALID;
"""

# A dump that is read in gets another table or cluster, a promoted replica or a recovery to a point in time another
# timeline. Class 57 of errors is an intervention: every writer waits, as it does while the server is away.
PLACES = """
CREATE TABLE log_places (
    place TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT log_places_pkey PRIMARY KEY (place)
);
COMMENT ON TABLE log_places IS 'Where the log may grow: after a restore not before it was compared with Kafka.';
COMMENT ON COLUMN log_places.place IS 'cluster, timeline and table of events, as log_place() gives them';
CREATE FUNCTION log_place() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT system_identifier || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) || '/' || 'events'::regclass::oid
    FROM pg_control_system()
$$;
CREATE FUNCTION refuse_elsewhere() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM log_places WHERE place = log_place()) THEN
        RAISE EXCEPTION 'the log was restored, or another server took over: an orchestrator must compare it with Kafka'
            USING ERRCODE = 'operator_intervention';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER events_in_their_place BEFORE INSERT ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_elsewhere();
INSERT INTO log_places (place, since) VALUES (log_place(), clock_timestamp());
"""

READER = """
DO $$
BEGIN
    EXECUTE 'GRANT SELECT ON log_places TO training_fsm_reader';
EXCEPTION WHEN undefined_object THEN
    RAISE NOTICE 'no role training_fsm_reader: nothing granted';
END
$$;
"""

TRANSITIONS_BEFORE = """
ALTER TABLE events DROP CONSTRAINT events_transition;
ALTER TABLE events ADD CONSTRAINT events_transition
    CHECK (coalesce(from_state, '') || '/' || type || '/' || coalesce(to_state, '') IN (
            'AWAITING_FEATURES/attempt_failed/AWAITING_FEATURES',
            'AWAITING_FEATURES/deadline_passed/AWAITING_FEATURES',
            'AWAITING_FEATURES/feature_request_answered/AWAITING_FEATURES',
            'AWAITING_FEATURES/features_lacking/AWAITING_FEATURES',
            'AWAITING_FEATURES/features_ready/TRAINING',
            'AWAITING_FEATURES/features_requested/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_cancelled/CANCELLED',
            'AWAITING_FEATURES/run_claimed/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_extended/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_failed/FAILED',
            'CANCELLED/artifacts_released/CANCELLED',
            'EVALUATING/artifacts_released/EVALUATING',
            'EVALUATING/attempt_failed/EVALUATING',
            'EVALUATING/evaluation_finished/EVALUATING',
            'EVALUATING/model_registered/REGISTERED',
            'EVALUATING/model_rejected/REJECTED',
            'EVALUATING/registration_intended/EVALUATING',
            'EVALUATING/run_cancelled/CANCELLED',
            'EVALUATING/run_claimed/EVALUATING',
            'EVALUATING/run_failed/FAILED',
            'FAILED/artifacts_released/FAILED',
            'FAILED/features_ready/FAILED',
            'FAILED/run_retried/AWAITING_FEATURES',
            'FAILED/run_retried/EVALUATING',
            'FAILED/run_retried/REQUESTED',
            'FAILED/run_retried/TRAINING',
            '/run_requested/REQUESTED',
            'PAUSED/artifacts_released/PAUSED',
            'PAUSED/run_cancelled/CANCELLED',
            'PAUSED/run_extended/PAUSED',
            'PAUSED/run_failed/FAILED',
            'PAUSED/run_resumed/TRAINING',
            'REGISTERED/artifacts_released/REGISTERED',
            'REJECTED/artifacts_released/REJECTED',
            'REJECTED/rejection_overridden/EVALUATING',
            'REJECTED/run_extended/TRAINING',
            'REQUESTED/attempt_failed/REQUESTED',
            'REQUESTED/features_requested/AWAITING_FEATURES',
            'REQUESTED/parent_resolved/AWAITING_FEATURES',
            'REQUESTED/run_cancelled/CANCELLED',
            'REQUESTED/run_claimed/REQUESTED',
            'REQUESTED/run_extended/REQUESTED',
            'REQUESTED/run_failed/FAILED',
            'TRAINING/artifacts_released/TRAINING',
            'TRAINING/attempt_failed/TRAINING',
            'TRAINING/checkpoint_saved/TRAINING',
            'TRAINING/data_frozen/TRAINING',
            'TRAINING/features_incomplete/AWAITING_FEATURES',
            'TRAINING/pause_requested/TRAINING',
            'TRAINING/run_cancelled/CANCELLED',
            'TRAINING/run_claimed/TRAINING',
            'TRAINING/run_extended/TRAINING',
            'TRAINING/run_failed/FAILED',
            'TRAINING/run_paused/PAUSED',
            'TRAINING/run_resumed/TRAINING',
            'TRAINING/training_finished/EVALUATING',
            'TRAINING/training_resumed/TRAINING',
            'TRAINING/training_started/TRAINING',
            '/champion_promoted/',
            '/command_refused/',
            '/message_dead_lettered/'
    )) NOT VALID;
"""


def upgrade() -> None:
    for script in (TRANSITIONS, PLACES, READER):
        op.execute(script)


def downgrade() -> None:
    op.execute("DROP TRIGGER events_in_their_place ON events")
    op.execute("DROP FUNCTION refuse_elsewhere()")
    op.execute("DROP FUNCTION log_place()")
    op.execute("DROP TABLE log_places")
    op.execute(TRANSITIONS_BEFORE)
