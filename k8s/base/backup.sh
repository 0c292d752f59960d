# Dumps the databases that CATALOG, MLFLOW and PREFECT name into a folder: backup.sh FOLDER
set -eu
dump() { pg_dump --format=custom --no-owner --file="$2/$1.dump" "$3" && pg_restore --list "$2/$1.dump" >/dev/null; }
dump catalog "$1" "$CATALOG"
dump mlflow "$1" "$MLFLOW"
dump prefect "$1" "$PREFECT"
ls -l "$1"
