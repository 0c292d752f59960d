# Brings the checkout of the project in a workspace to the project of this image: checkout.sh WORKSPACE
# The branch `image` has what images brought. What people changed stays: it is merged, or, where both changed the same,
# nothing is done and said so.
set -eu
cd "$1"
[ -d .git ] || git init --quiet --initial-branch main
export GIT_AUTHOR_NAME=blip GIT_AUTHOR_EMAIL=blip@localhost GIT_COMMITTER_NAME=blip GIT_COMMITTER_EMAIL=blip@localhost
index=$(mktemp -u)
tree=$(GIT_INDEX_FILE=$index GIT_WORK_TREE=${PROJECT:-/opt/project} sh -c 'git add --all --force . && git write-tree')
old=$(git rev-parse --quiet --verify refs/heads/image || true)
if [ -n "$old" ] && [ "$(git rev-parse "$old^{tree}")" = "$tree" ]; then
  echo "the workspace has this image's project"
  exit 0
fi
new=$(echo "The project as it is in the image" | git commit-tree "$tree" ${old:+-p "$old"})
if [ -z "$old" ]; then
  git reset --quiet --hard "$new"
elif ! git merge --quiet --no-edit "$new"; then
  git merge --abort 2>/dev/null || true
  echo "checkout: $1: commit or take back what was changed there by hand" >&2
  exit 2
fi
git update-ref refs/heads/image "$new"
[ -e .dvc/config.local ] || printf '[core]\n    remote = bucket\n['\''remote "bucket"'\'']\n    url = s3://dvc\n' >.dvc/config.local
echo "the workspace is at $(git rev-parse --short HEAD)"
