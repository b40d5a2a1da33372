#!/usr/bin/env bash
# Builds and starts everything in containers, trains one small model and takes it all down again: exit 0 means that it
# works here. Needs docker with compose; TORCH_INDEX_URL is handed on to the build. KEEP=1 leaves it running.
set -euo pipefail
cd "$(dirname "$0")/.."

compose() { docker compose --project-name training-fsm-smoke --profile standins "$@"; }

down() {
  local code=$?
  if ((code)); then
    compose ps --all || true
    compose logs --tail 40 || true
  fi
  if [[ -z ${KEEP:-} ]]; then
    compose down --volumes --timeout 30
  fi
  exit "$code"
}
trap down EXIT

# A volume of its own: nothing of another installation is touched.
export FEAST_VOLUME=training-fsm-smoke-feast
compose up --build --detach --wait --wait-timeout 600

# Healthy is enough to start with; ready is more: services were reached, and the training child has imported everything.
ready() {
  compose exec -T "$1" python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/readyz', timeout=10)"
}
for role in orchestrator worker; do
  for attempt in {1..30}; do
    if ready "$role" 2>/dev/null; then break; fi
    if ((attempt == 30)); then ready "$role"; fi
    sleep 2
  done
done

# Exits 0 only for a registered model; the request's gate lets through whatever a minute of training gives.
compose exec -T orchestrator training-fsm run submit - --run-id smoke --wait <training_fsm/cli/demo/request.yaml
compose exec -T orchestrator training-fsm run show smoke
compose exec -T orchestrator training-fsm run list --json | grep -q '"REGISTERED"'
echo "smoke test passed: a model was trained and registered"
