"""Prefect flows over the graph of `dvc.yaml`: the only code that imports Prefect."""
