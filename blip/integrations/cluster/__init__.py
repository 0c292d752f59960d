"""Stages as Jobs on Kubernetes. Nothing else imports `kubernetes`, and nothing here imports Prefect."""
