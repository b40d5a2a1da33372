"""Runs that continue a model: look-ups that workers claim, streams of models, the view of their lineage."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CLAIMABLE = """
ALTER TABLE run_heads ADD COLUMN claimable BOOLEAN NOT NULL DEFAULT false;
UPDATE run_heads SET claimable = state IN ('TRAINING', 'EVALUATING');
ALTER TABLE run_heads ALTER COLUMN claimable DROP DEFAULT;
COMMENT ON COLUMN run_heads.claimable IS 'there is work for a worker, now or when it is due';
DROP INDEX run_heads_work_idx;
DROP INDEX run_heads_features_idx;
CREATE INDEX run_heads_work_idx ON run_heads (due_at) WHERE claimable;
CREATE INDEX run_heads_features_idx ON run_heads (due_at) WHERE state = 'AWAITING_FEATURES' AND NOT claimable;
"""

# Not valid: what is in the log already was allowed when it was written.
TRANSITIONS = """
ALTER TABLE events DROP CONSTRAINT events_transition;
ALTER TABLE events ADD CONSTRAINT events_transition
    CHECK (coalesce(from_state, '') || '/' || type || '/' || coalesce(to_state, '') IN (
            'AWAITING_FEATURES/attempt_failed/AWAITING_FEATURES',
            'AWAITING_FEATURES/feature_request_answered/AWAITING_FEATURES',
            'AWAITING_FEATURES/features_lacking/AWAITING_FEATURES',
            'AWAITING_FEATURES/features_ready/TRAINING',
            'AWAITING_FEATURES/features_requested/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_cancelled/CANCELLED',
            'AWAITING_FEATURES/run_claimed/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_failed/FAILED',
            'EVALUATING/attempt_failed/EVALUATING',
            'EVALUATING/evaluation_finished/EVALUATING',
            'EVALUATING/model_registered/REGISTERED',
            'EVALUATING/model_rejected/REJECTED',
            'EVALUATING/registration_intended/EVALUATING',
            'EVALUATING/run_cancelled/CANCELLED',
            'EVALUATING/run_claimed/EVALUATING',
            'EVALUATING/run_failed/FAILED',
            'FAILED/features_ready/FAILED',
            'FAILED/run_retried/AWAITING_FEATURES',
            'FAILED/run_retried/EVALUATING',
            'FAILED/run_retried/REQUESTED',
            'FAILED/run_retried/TRAINING',
            '/run_requested/REQUESTED',
            'REQUESTED/attempt_failed/REQUESTED',
            'REQUESTED/features_requested/AWAITING_FEATURES',
            'REQUESTED/parent_resolved/AWAITING_FEATURES',
            'REQUESTED/run_cancelled/CANCELLED',
            'REQUESTED/run_claimed/REQUESTED',
            'REQUESTED/run_failed/FAILED',
            'TRAINING/attempt_failed/TRAINING',
            'TRAINING/checkpoint_saved/TRAINING',
            'TRAINING/data_frozen/TRAINING',
            'TRAINING/run_cancelled/CANCELLED',
            'TRAINING/run_claimed/TRAINING',
            'TRAINING/run_failed/FAILED',
            'TRAINING/training_finished/EVALUATING',
            'TRAINING/training_resumed/TRAINING',
            'TRAINING/training_started/TRAINING',
            '/champion_promoted/',
            '/command_refused/',
            '/message_dead_lettered/'
    )) NOT VALID;
CREATE INDEX events_champion_idx ON events (stream, version) WHERE type = 'champion_promoted';
COMMENT ON TABLE events IS 'The log: append-only, one stream per run, command, dead letter or model name.';
"""

VIEWS = """
CREATE OR REPLACE VIEW runs AS
SELECT run_id, state, model, symbol, timeframe,
       (run #>> '{checkpoints,-1,step}')::bigint AS checkpoint_step,
       coalesce((run #>> '{parent,steps}')::bigint, 0)
       + (ceil((run #>> '{request,agent,total_timesteps}')::numeric / rollout) * rollout)::bigint AS total_timesteps,
       (run #>> '{registered,version}')::int AS model_version,
       run #>> '{failure,words}' AS failure,
       worker, lease_until, version, token, requested_at, changed_at
FROM run_heads,
     LATERAL (SELECT (run #>> '{request,agent,hyperparameters,n_steps}')::bigint
                     * (run #>> '{request,agent,n_envs}')::bigint AS rollout) AS agent;

CREATE VIEW models AS
SELECT run #>> '{registered,name}' AS model,
       (run #>> '{registered,version}')::int AS version,
       run_id,
       run #>> '{registered,parent,name}' AS parent_model,
       (run #>> '{registered,parent,version}')::int AS parent_version,
       coalesce(run #>> '{registered,root,name}', run #>> '{registered,name}') AS root_model,
       coalesce(run #>> '{registered,root,version}', run #>> '{registered,version}')::int AS root_version,
       coalesce((run #>> '{registered,depth}')::int, 0) AS depth,
       (run #>> '{registered,version}') = (
           SELECT payload ->> 'version' FROM events
           WHERE type = 'champion_promoted' AND events.stream = 'model-' || (run #>> '{registered,name}')
           ORDER BY events.version DESC LIMIT 1
       ) IS TRUE AS champion,
       symbol, timeframe,
       (run #>> '{request,range,start}')::timestamptz AS data_start,
       (run #>> '{request,range,end}')::timestamptz AS data_end,
       run #>> '{data,digest}' AS data_digest,
       run #>> '{feature_config,semver}' AS feature_semver,
       run #>> '{feature_config,hash}' AS feature_hash,
       (run #>> '{checkpoints,-1,step}')::bigint AS steps,
       (run #>> '{evaluation,metrics,total_return_fraction}')::double precision AS test_total_return_fraction,
       (run #>> '{evaluation,metrics,sharpe}')::double precision AS test_sharpe,
       (run #>> '{evaluation,metrics,max_drawdown_fraction}')::double precision AS test_max_drawdown_fraction,
       changed_at AS registered_at
FROM run_heads WHERE state = 'REGISTERED';
COMMENT ON VIEW models IS 'Every registered version with its parent, the root of its line, and what it was worth.';
"""

READER = """
DO $$
BEGIN
    EXECUTE 'GRANT SELECT ON models TO training_fsm_reader';
EXCEPTION WHEN undefined_object THEN
    RAISE NOTICE 'no role training_fsm_reader: nothing granted';
END
$$;
"""

TRANSITIONS_BEFORE = """
DROP INDEX events_champion_idx;
ALTER TABLE events DROP CONSTRAINT events_transition;
ALTER TABLE events ADD CONSTRAINT events_transition
    CHECK (coalesce(from_state, '') || '/' || type || '/' || coalesce(to_state, '') IN (
            'AWAITING_FEATURES/attempt_failed/AWAITING_FEATURES',
            'AWAITING_FEATURES/feature_request_answered/AWAITING_FEATURES',
            'AWAITING_FEATURES/features_ready/TRAINING',
            'AWAITING_FEATURES/features_requested/AWAITING_FEATURES',
            'AWAITING_FEATURES/run_cancelled/CANCELLED',
            'AWAITING_FEATURES/run_failed/FAILED',
            'EVALUATING/attempt_failed/EVALUATING',
            'EVALUATING/evaluation_finished/EVALUATING',
            'EVALUATING/model_registered/REGISTERED',
            'EVALUATING/model_rejected/REJECTED',
            'EVALUATING/registration_intended/EVALUATING',
            'EVALUATING/run_cancelled/CANCELLED',
            'EVALUATING/run_claimed/EVALUATING',
            'EVALUATING/run_failed/FAILED',
            'FAILED/features_ready/FAILED',
            'FAILED/run_retried/AWAITING_FEATURES',
            'FAILED/run_retried/EVALUATING',
            'FAILED/run_retried/TRAINING',
            '/run_requested/REQUESTED',
            'REQUESTED/features_requested/AWAITING_FEATURES',
            'REQUESTED/run_cancelled/CANCELLED',
            'REQUESTED/run_failed/FAILED',
            'TRAINING/attempt_failed/TRAINING',
            'TRAINING/checkpoint_saved/TRAINING',
            'TRAINING/data_frozen/TRAINING',
            'TRAINING/run_cancelled/CANCELLED',
            'TRAINING/run_claimed/TRAINING',
            'TRAINING/run_failed/FAILED',
            'TRAINING/training_finished/EVALUATING',
            'TRAINING/training_resumed/TRAINING',
            'TRAINING/training_started/TRAINING',
            '/command_refused/',
            '/message_dead_lettered/'
    )) NOT VALID;
COMMENT ON TABLE events IS 'The log: append-only, one stream per run, command or dead letter.';
"""

RUNS_BEFORE = """
CREATE OR REPLACE VIEW runs AS
SELECT run_id, state, model, symbol, timeframe,
       (run #>> '{checkpoints,-1,step}')::bigint AS checkpoint_step,
       (ceil((run #>> '{request,agent,total_timesteps}')::numeric / rollout) * rollout)::bigint AS total_timesteps,
       (run #>> '{registered,version}')::int AS model_version,
       run #>> '{failure,words}' AS failure,
       worker, lease_until, version, token, requested_at, changed_at
FROM run_heads,
     LATERAL (SELECT (run #>> '{request,agent,hyperparameters,n_steps}')::bigint
                     * (run #>> '{request,agent,n_envs}')::bigint AS rollout) AS agent;
"""

CLAIMABLE_BEFORE = """
DROP INDEX run_heads_work_idx;
DROP INDEX run_heads_features_idx;
CREATE INDEX run_heads_work_idx ON run_heads (due_at) WHERE state IN ('EVALUATING', 'TRAINING');
CREATE INDEX run_heads_features_idx ON run_heads (due_at) WHERE state = 'AWAITING_FEATURES';
ALTER TABLE run_heads DROP COLUMN claimable;
"""


def upgrade() -> None:
    for script in (CLAIMABLE, TRANSITIONS, VIEWS, READER):
        op.execute(script)


def downgrade() -> None:
    op.execute("DROP VIEW models")
    for script in (RUNS_BEFORE, TRANSITIONS_BEFORE, CLAIMABLE_BEFORE):
        op.execute(script)
