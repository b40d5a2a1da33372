"""Pauses, extensions, overridden rejections, last looks, refills, and files that the janitor may delete."""

from alembic import op

revision = "0003"
down_revision = "0002"
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
            '/message_dead_lettered/'
    )) NOT VALID;
"""

RUNS = """
CREATE OR REPLACE VIEW runs AS
SELECT run_id, state, model, symbol, timeframe,
       (run #>> '{checkpoints,-1,step}')::bigint AS checkpoint_step,
       coalesce((run #>> '{parent,steps}')::bigint, 0)
       + (ceil((run #>> '{request,agent,total_timesteps}')::numeric / rollout) * rollout)::bigint
       + (ceil(coalesce((run #>> '{extended_timesteps}')::numeric, 0) / rollout) * rollout)::bigint AS total_timesteps,
       (run #>> '{registered,version}')::int AS model_version,
       run #>> '{failure,words}' AS failure,
       worker, lease_until, version, token, requested_at, changed_at
FROM run_heads,
     LATERAL (SELECT (run #>> '{request,agent,hyperparameters,n_steps}')::bigint
                     * (run #>> '{request,agent,n_envs}')::bigint AS rollout) AS agent;
"""

TRANSITIONS_BEFORE = """
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
"""

RUNS_BEFORE = """
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
"""


def upgrade() -> None:
    for script in (TRANSITIONS, RUNS):
        op.execute(script)


def downgrade() -> None:
    for script in (RUNS_BEFORE, TRANSITIONS_BEFORE):
        op.execute(script)
