# Makes a database and its owner for each part of the platform; runs once, on an empty volume.
set -eu
make() {
  psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}
make catalog "$CATALOG_PASSWORD"
make mlflow "$MLFLOW_PASSWORD"
make prefect "$PREFECT_PASSWORD"
