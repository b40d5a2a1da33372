# syntax=docker/dockerfile:1
# One image per role, by EXTRAS: empty is the orchestrator and the command line, `worker` adds torch, Stable-Baselines3,
# Feast and MLflow, `local` the stand-ins too.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG EXTRAS=worker
# PyTorch's index of wheels for CPUs, or for a version of CUDA. Empty: the torch of pip's own index, which on x86-64
# brings CUDA along.
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY migrations migrations
COPY training_fsm training_fsm
# Torch first, where it has an index of its own: what comes after finds it there, in the version of the constraints.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "${TORCH_INDEX_URL}" ] && [ -n "${EXTRAS}" ]; then \
        /opt/venv/bin/pip install -c constraints.txt --extra-index-url "${TORCH_INDEX_URL}" torch; \
    fi && \
    /opt/venv/bin/pip install -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}"

FROM python:${PYTHON_VERSION}-slim
# A number, so that an orchestrator of containers can see that it is not root.
ARG UID=10001
RUN useradd --uid "${UID}" --user-group --no-create-home --home-dir /var/lib/training-fsm training-fsm && \
    install -d -o training-fsm -g training-fsm /var/lib/training-fsm /feast /mlflow
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GIT_PYTHON_REFRESH=quiet \
    TRAINING_FSM_HOME=/var/lib/training-fsm \
    TRAINING_FSM_HTTP_HOST=0.0.0.0 \
    TRAINING_FSM_HTTP_PORT=9464 \
    TRAINING_FSM_LOG_FORMAT=json
WORKDIR /var/lib/training-fsm
USER ${UID}
EXPOSE 9464
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"TRAINING_FSM_HTTP_PORT\"]}/healthz', timeout=8)"]
ENTRYPOINT ["training-fsm"]
CMD ["--help"]
