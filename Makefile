# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
ENGINE := $(or $(shell command -v podman),docker)
TORCH ?= cpu
OVERLAY ?= local

.PHONY: help demo test ui study bench bench-smoke image deploy-local install install-dev check check-kube format lock clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@sed -nE 's/^([a-z-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: install  ## Run the whole loop on the demo world; ends with a table and reports/report.html
	@$(BIN)/blip run

test: install-dev  ## Run the default tests (a few minutes, no network)
	@$(BIN)/pytest -q -n 2 --dist loadscope

ui: install  ## Open the MLflow and Prefect pages on free loopback ports
	@$(BIN)/blip ui

study: install  ## Repeat the study of docs/study.md (up to 2 hours on 2 cores; continues where it was stopped)
	@$(BIN)/blip study

bench: install-dev  ## Time the hot paths against other ways (hours on a CPU, which should be idle); docs/benchmarks.md
	@$(BIN)/python -m benchmarks --out benchmarks/results.json --record benchmarks/RESULTS.md

bench-smoke: install-dev  ## Check at tiny size that all ways give equal results (a minute)
	@$(BIN)/python -m benchmarks --size tiny --scale 0.02 --repeats 1

image:  ## Build the image for clusters with podman or docker (ENGINE); TORCH=cu130 for GPUs
	$(ENGINE) build -f k8s/Dockerfile -t docker.io/library/blip:$(if $(filter cpu,$(TORCH)),cpu,cuda) --build-arg TORCH=$(TORCH) .

deploy-local:  ## Install the platform on the cluster of KUBECONFIG and wait for it; OVERLAY=gpu for one with GPUs
	@: $${KUBECONFIG:?names the cluster}
	k8s/secrets.sh k8s/overlays/$(OVERLAY)
	kubectl -n blip delete job buckets --ignore-not-found  # an ended Job cannot take another image
	kubectl apply -k k8s/overlays/$(OVERLAY)
	kubectl -n blip rollout status --timeout 15m deployment/mlflow deployment/prefect deployment/worker
	@echo 'Prefect  kubectl -n blip port-forward service/prefect 4200   http://localhost:4200'
	@echo 'MLflow   kubectl -n blip port-forward service/mlflow 5000    http://localhost:5000/#/experiments?workflowType=machine_learning'
	@echo 'Prefect asks for the value of PREFECT_API_AUTH_STRING in k8s/overlays/$(OVERLAY)/secrets/prefect.env'

install: $(VENV)/.runtime data/world.json  ## Create .venv with the locked packages, and draw the demo's raw data

install-dev: $(VENV)/.dev  ## Create .venv with the locked packages and the development tools

$(VENV)/.runtime: requirements.lock pyproject.toml
	@PYTHON=$(PYTHON) ./install.sh requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml
	@PYTHON=$(PYTHON) ./install.sh requirements-dev.lock
	@touch $(VENV)/.runtime $@

data/world.json: | $(VENV)/.runtime
	@$(BIN)/blip world data

check: install-dev  ## Run what CI runs: format, lint, types, import contracts, all tests that this machine can run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q -n 2 --dist loadscope -m 'not gpu and not kube'

check-kube: install-dev  ## Run the tests on a real Kubernetes cluster (BLIP_KUBECONFIG, or the reference material and root)
	$(BIN)/pytest -q -n 0 -m kube --durations 10

format: install-dev  ## Format the code, and fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: install-dev  ## Resolve the pinned packages again from pyproject.toml
	for extra in "" dev; do \
	  lock=requirements$${extra:+-$$extra}.lock; \
	  env -u UV_FIND_LINKS $(BIN)/uv pip compile pyproject.toml $${extra:+--extra $$extra} --universal --python-version 3.11 \
	    --no-header --no-annotate --quiet -o $$lock && \
	  sed -i -E '/^(nvidia-|cuda-|triton)/d' $$lock; \
	done  # torch pins its own CUDA packages, and only its CUDA build wants them

clean:  ## Remove what the demo made; the environment stays
	rm -rf data datasets models results runs tokenizer captions mlruns mlartifacts .blip
	rm -f mlflow.db* catalog.db*
