#!/usr/bin/env bash
# Makes the secrets of an overlay that are missing, with random passwords: k8s/secrets.sh k8s/overlays/local
# A file that is there stays as it is. For a store outside of the cluster, put its address and password in by hand.
set -euo pipefail
cd "$1"
umask 077
mkdir -p secrets
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# one NAME: the lines of standard input become secrets/NAME.env
one() { if [ -e "secrets/$1.env" ]; then cat >/dev/null; else cat >"secrets/$1.env"; fi; }
value() { sed -n "s/^$2=//p" "secrets/$1.env"; }

one postgres <<X
POSTGRES_USER=postgres
POSTGRES_PASSWORD=$(random)
CATALOG_PASSWORD=$(random)
MLFLOW_PASSWORD=$(random)
PREFECT_PASSWORD=$(random)
X
catalog="catalog:$(value postgres CATALOG_PASSWORD)@postgres:5432/catalog"
mlflow="mlflow:$(value postgres MLFLOW_PASSWORD)@postgres:5432/mlflow"
prefect="prefect:$(value postgres PREFECT_PASSWORD)@postgres:5432/prefect"
one catalog <<X
BLIP_CATALOG_URL=postgresql+psycopg://$catalog
X
one mlflow <<X
MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://$mlflow
X
one prefect <<X
PREFECT_API_AUTH_STRING=blip:$(random)
X
one prefect-server <<X
PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://$prefect
PREFECT_SERVER_API_AUTH_STRING=$(value prefect PREFECT_API_AUTH_STRING)
X
one backup <<X
CATALOG=postgresql://$catalog
MLFLOW=postgresql://$mlflow
PREFECT=postgresql://$prefect
X
one s3 <<X
AWS_ENDPOINT_URL=http://s3:8080
AWS_DEFAULT_REGION=us-east-1
AWS_ACCESS_KEY_ID=$(random)
AWS_SECRET_ACCESS_KEY=$(random)
X
one s3-server <<X
RCLONE_AUTH_KEY="$(value s3 AWS_ACCESS_KEY_ID),$(value s3 AWS_SECRET_ACCESS_KEY)"
X
