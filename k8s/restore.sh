#!/usr/bin/env bash
# Brings a database of the platform, mlflow or prefect, back to a backup: k8s/restore.sh mlflow <mlflow.dump
# The backup becomes a new database first, so one that cannot be read changes nothing. Then the server stops while the
# two change places. What was there stays, by the name that is said at the end.
set -euo pipefail
name=${1:?mlflow or prefect} new=$1_restored old=$1_$(date -u +%Y%m%d_%H%M%S)
kubectl() { command kubectl --namespace blip "$@"; }
sql() {
  kubectl exec -i postgres-0 -- psql --quiet --username postgres --set ON_ERROR_STOP=1 \
    --set name="$name" --set new="$new" --set old="$old"
}

replicas=$(kubectl get deployment "$name" --output 'jsonpath={.spec.replicas}')
sql <<'SQL'
DROP DATABASE IF EXISTS :"new";
CREATE DATABASE :"new" OWNER :"name";
REVOKE ALL ON DATABASE :"new" FROM PUBLIC;
SQL
kubectl exec -i postgres-0 -- pg_restore --username postgres --role "$name" --no-owner --single-transaction --dbname "$new"
start() {
  kubectl scale deployment "$name" --replicas "$replicas"
  kubectl rollout status deployment "$name" --timeout 15m
}
trap start EXIT
kubectl scale deployment "$name" --replicas 0
kubectl wait --for delete pod --selector "app.kubernetes.io/component=$name" --timeout 5m
sql <<'SQL'
BEGIN;
ALTER DATABASE :"name" RENAME TO :"old";
ALTER DATABASE :"new" RENAME TO :"name";
COMMIT;
SQL
echo "$name is what the backup was; what it was before is the database $old (dropdb --username postgres $old)"
