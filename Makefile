# Two commands: `make quickstart` and `make test`. Each installs what it needs into .venv first, in the versions that
# constraints.txt names.
PYTHON ?= python3
BIN := .venv/bin
LOCKED := --quiet --constraint constraints.txt
REPORT = --quiet --dry-run --ignore-installed --constraint constraints.txt --report
TORCH_INDEX = $(shell sed -n 's/^ARG TORCH_INDEX=//p' Dockerfile)
CPU_IMAGE ?= ghcr.io/bloomery/bloomery-cpu:0.1.0
GPU_IMAGE ?= ghcr.io/bloomery/bloomery-gpu:0.1.0
BUILD = docker build --build-arg COMMIT=$$(git rev-parse HEAD)

.PHONY: quickstart smollm2 test check lock install install-test compile image image-gpu audit clean bench-data bench-eval bench-drift \
  bench-memory bench-train bench-gpu bench-methods bench-replay bench-kills

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(LOCKED) --upgrade pip
	$(BIN)/python -m pip install $(LOCKED) --build-constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install $(LOCKED) --build-constraint constraints.txt --editable '.[test]'
	touch $@

install: .venv/installed  ## install into .venv

install-test: .venv/installed-test  ## and what the tests need

quickstart: .venv/installed  ## raw text in, a promoted model out
	$(BIN)/bloomery run quickstart

smollm2: .venv/installed  ## a published model learns shell commands; BLOOMERY_DATA names the folder of the data
	@test -n "$(BLOOMERY_DATA)" || { echo 'BLOOMERY_DATA is not set: the folder that holds tldr_en_ko, truthfulqa,' \
	  'self_instruct and peps_eips; README.md says where they come from'; exit 2; }
	$(BIN)/bloomery run smollm2

# Two files at a time, the longest first, each with the thread that its tiny models can use.
test: .venv/installed-test  ## everything that must hold
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  tests/integration tests/contract tests/unit

check: .venv/installed-test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy --explicit-package-bases components/core

# Without local suffixes such as torch's +cpu, which differ by where a build comes from.
lock:  ## the newest versions that pyproject.toml allows, into constraints.txt, and the images' files of them by hash
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip setuptools
	build/lock/bin/python -m pip install --quiet '.[test]'
	{ echo '# What `make quickstart`, `make test` and the image install; `make lock` wrote it, with' \
	  "$$(build/lock/bin/python --version) on $$(uname -sm)."; \
	  build/lock/bin/python -m pip freeze --all --exclude bloomery | sed 's/+[A-Za-z0-9.]*$$//' | LC_ALL=C sort --ignore-case; \
	} > build/constraints.txt
	mv build/constraints.txt constraints.txt
	build/lock/bin/python -m pip install $(REPORT) build/cpu.json --extra-index-url $(TORCH_INDEX) \
	  'torch==2.13.0+cpu' psycopg2-binary optuna cmaes bitsandbytes .
	build/lock/bin/python -m pip install $(REPORT) build/gpu.json 'torch===2.13.0' psycopg2-binary optuna cmaes bitsandbytes .
	for image in cpu gpu; do python3 infra/image/lock.py build/$$image.json > build/$$image.txt && \
	  mv build/$$image.txt infra/image/$$image.txt || exit 1; done

compile: .venv/installed  ## the quickstart as a Kubeflow pipeline
	$(BIN)/bloomery compile quickstart --output build/quickstart.yaml

image:  ## the CPU image; its bill of materials and licences go to build/
	$(BUILD) --tag $(CPU_IMAGE) .
	mkdir -p build
	docker run --rm --network none $(CPU_IMAGE) python3 -m bloomery.infra.bill > build/bill.json
	docker run --rm --network none $(CPU_IMAGE) python3 -m bloomery.infra.bill --licences > build/licences.txt

image-gpu:  ## the GPU image, with CUDA 13's torch
	$(BUILD) --build-arg LOCK=gpu --tag $(GPU_IMAGE) .

# PyPI knows torch without +cpu, and pip-audit no ===. Strict: what it cannot ask about is no good news.
audit:  ## known vulnerabilities of the images' packages, by the service that pip-audit asks
	$(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit
	for image in cpu gpu; do sed 's/+cpu//; s/===/==/' infra/image/$$image.txt > build/audit/$$image.txt && \
	  build/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement build/audit/$$image.txt || exit 1; done

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
	$(BIN)/python tests/benchmarks/throughput.py $(BLOOMERY_DATA)
	$(BIN)/python tests/benchmarks/real_data.py $(BLOOMERY_DATA)

RUN ?= $(lastword $(sort $(wildcard bloomery-runs/runs/*-quickstart)))
OUTPUTS = $(RUN)/pipeline/*
TRAFFIC = $(firstword $(shell ls -t $(or $(BLOOMERY_CACHE),$(HOME)/.cache/bloomery)/quickstart-*/traffic.jsonl))

bench-eval: .venv/installed-test  ## the gate's errors, evaluation, quantisation and serving; RUN is a run of the quickstart
	$(BIN)/python tests/benchmarks/gate.py
	$(BIN)/python tests/benchmarks/evaluation_speed.py $(OUTPUTS)/sft-3/model $(OUTPUTS)/preflight/tasks
	$(BIN)/python tests/benchmarks/quantisation.py $(OUTPUTS)/sft-3/model $(OUTPUTS)/preflight/tasks $(OUTPUTS)/synthetic-data/chats
	$(BIN)/python tests/benchmarks/serving.py $(OUTPUTS)/sft-3/model $(TRAFFIC)

bench-drift: .venv/installed-test  ## delay and false alarms of drift detection, and what a check costs
	$(BIN)/python tests/benchmarks/drift.py $(BLOOMERY_DATA) $(TRAFFIC)

bench-memory: .venv/installed-test  ## peak memory by vocabulary, and by the size of corpus and chats; BLOOMERY_DATA names texts
	$(BIN)/python tests/benchmarks/memory.py
	$(BIN)/python tests/benchmarks/token_shards.py

bench-train: .venv/installed-test  ## training beside a bare loop and beside TRL's own, and its start
	$(BIN)/python tests/benchmarks/train.py

bench-gpu: .venv/installed-test  ## training of 1.24 B parameters beside the peak of this machine's card
	$(BIN)/python tests/benchmarks/gpu.py

SMOLLM2 ?= $(lastword $(sort $(wildcard bloomery-runs/runs/*-smollm2)))

bench-methods: .venv/installed-test  ## what each method of fine-tuning costs and brings; SMOLLM2 is a run of that recipe
	$(BIN)/python tests/benchmarks/methods.py $(SMOLLM2)

bench-replay: .venv/installed-test  ## what the quickstart's continued pre-training forgets, by the share that is replayed
	$(BIN)/python tests/benchmarks/replay.py

bench-kills: .venv/installed-test  ## twenty kills over a run of a tiny chain, held against one that nobody disturbed
	$(BIN)/python tests/benchmarks/kills.py
