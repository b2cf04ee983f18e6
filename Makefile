# Two commands: `make quickstart` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check install install-test compile image clean bench-data bench-eval bench-drift bench-memory

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

install: .venv/installed  ## install into .venv

install-test: .venv/installed-test  ## and what the tests need

quickstart: .venv/installed  ## raw text in, a promoted model out
	$(BIN)/bloomery run quickstart

# Two files at a time, the longest first, each with the thread that its tiny models can use.
test: .venv/installed-test  ## everything that must hold
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  tests/integration tests/unit tests/contract

check: .venv/installed-test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy --explicit-package-bases components/core

compile: .venv/installed  ## the quickstart as a Kubeflow pipeline
	$(BIN)/bloomery compile quickstart --output build/quickstart.yaml

image:  ## the CPU image
	docker build --build-arg COMMIT=$$(git rev-parse HEAD) --tag bloomery:cpu .

clean:
	rm -rf .venv build dist *.egg-info

bench-data: .venv/installed-test  ## curation and dedup beside their peers; BLOOMERY_DATA names the corpora
	for peer in 'gaoya pyarrow' 'datatrove[processing]==0.10.1 spacy orjson xxhash<4 pyarrow'; do \
	  name=$${peer%%[ [=]*}; test -d build/peers/$$name || \
	  { $(PYTHON) -m venv build/peers/$$name && build/peers/$$name/bin/pip install --quiet $$peer; } || exit 1; \
	done
	$(BIN)/python tests/benchmarks/near_dedup.py $(BLOOMERY_DATA) build/peers
	$(BIN)/python tests/benchmarks/near_korean.py $(BLOOMERY_DATA)
	$(BIN)/python tests/benchmarks/curation_rules.py $(BLOOMERY_DATA) build/peers
	$(BIN)/python tests/benchmarks/scale.py $(BLOOMERY_DATA)
	$(BIN)/python tests/benchmarks/real_data.py $(BLOOMERY_DATA)

RUN ?= $(lastword $(sort $(wildcard bloomery-runs/runs/*-quickstart)))
OUTPUTS = $(RUN)/pipeline/*
TRAFFIC = $(firstword $(shell ls -t $(or $(BLOOMERY_CACHE),$(HOME)/.cache/bloomery)/quickstart-*/traffic.jsonl))

bench-eval: .venv/installed-test  ## the gate's errors, evaluation, quantisation and serving; RUN is a run of the quickstart
	$(BIN)/python tests/benchmarks/gate.py
	$(BIN)/python tests/benchmarks/evaluation_speed.py $(OUTPUTS)/dpo/model $(OUTPUTS)/preflight/tasks
	$(BIN)/python tests/benchmarks/quantisation.py $(OUTPUTS)/dpo/model $(OUTPUTS)/preflight/tasks $(OUTPUTS)/synthetic-data/chats
	$(BIN)/python tests/benchmarks/serving.py $(OUTPUTS)/dpo/model $(TRAFFIC)

bench-drift: .venv/installed-test  ## delay and false alarms of drift detection, and what a check costs
	$(BIN)/python tests/benchmarks/drift.py $(BLOOMERY_DATA) $(TRAFFIC)

bench-memory: .venv/installed-test  ## peak memory of likelihoods, fine-tuning and preference optimisation by vocabulary
	$(BIN)/python tests/benchmarks/memory.py
