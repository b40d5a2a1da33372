"""Alembic's entry: runs the steps on the connection it is given, or on TRAINING_FSM_DATABASE_URL."""

import os

import sqlalchemy as sa
from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    engine = sa.create_engine(os.environ["TRAINING_FSM_DATABASE_URL"])
    with engine.begin() as own, context.begin_transaction():
        context.configure(connection=own)
        context.run_migrations()
else:
    context.configure(connection=connection)
    context.run_migrations()
