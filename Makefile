# Targets for users and developers; `make` alone lists them.
# The environment's logic is in .ci/environment.py; it runs first for every target that needs .venv
# and starts pip only when pyproject.toml, EXTRAS, PYTHON or PYTHON's torch have changed.

MADE_WITH := $(shell { read -r python < .venv/made-with && echo "$$python"; } 2> /dev/null)
PYTHON ?= $(or $(MADE_WITH),python3)
EXTRAS ?= dev,export,recipes,report,tensorboard
ARCHIVES ?= data/archives
DATA ?= data/images
VAL ?= $(DATA)/val
SHARDS ?= data/shards
MODEL ?= resnet50
CARDS ?= 1
RUN ?= runs/$(MODEL)
DEMO ?= demo
CIFAR ?= data/cifar10-jpeg.tar
ARGS ?=
ALLOW_CPU ?=

# $(call sh,NAME) is the value of NAME quoted for the shell: paths may hold spaces and quotes.
sh = '$(subst ','\'',$($1))'

BIN := .venv/bin
TRAINER_TESTS := $(wildcard $(addprefix tests/training/test_,$(addsuffix .py,trainer evaluate streamed)))
DEMO_TRAIN := --model resnet18 --nproc 2 --image-size 64 --epochs 8 --batch-size 32

.DEFAULT_GOAL := help
.PHONY: help install simd demo test test-all test-sdaa proof check bench doctor extract organize shard verify train eval export report docker clean

help: ## list the targets and the variables
	@awk -F ' *## *' '/^[a-z-]+:.*## / { sub(/:.*/, "", $$1); printf "make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables, as in `make train SHARDS=/ssd/shards CARDS=4 ARGS="--epochs 90"`:'
	@printf '  %-9s %-14s %s\n' \
	    ARCHIVES $(call sh,ARCHIVES) 'folder of the ILSVRC2012 archives' \
	    DATA $(call sh,DATA) 'folder of the extracted pictures' \
	    VAL $(call sh,VAL) 'folder of validation pictures that were extracted by hand' \
	    SHARDS $(call sh,SHARDS) 'folder of the shards' \
	    MODEL $(call sh,MODEL) 'network to train' \
	    CARDS $(call sh,CARDS) 'cards of this machine to train on; on a CPU none: CARDS= ARGS="--nproc 2"' \
	    RUN $(call sh,RUN) 'folder of the checkpoints and metrics' \
	    DEMO $(call sh,DEMO) 'folder of the demo' \
	    CIFAR $(call sh,CIFAR) 'tar of JPEGs: train/CLASS/*.jpg and test/CLASS/*.jpg' \
	    PYTHON $(call sh,PYTHON) 'Python to make .venv with; its torch, if any, is kept' \
	    EXTRAS $(call sh,EXTRAS) 'extras of pyproject.toml to install' \
	    ARGS $(call sh,ARGS) "more options for the target's command"

install: ## make .venv with everything in it; nothing is done twice
	@command -v $(call sh,PYTHON) > /dev/null || \
	    { echo "make: there is no" $(call sh,PYTHON)", name a Python >= 3.10 with PYTHON=" >&2; exit 1; }
	@$(call sh,PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "make:" $(call sh,PYTHON) "does not run or is older than 3.10: name another with PYTHON=" >&2; exit 1; }
	@$(call sh,PYTHON) .ci/environment.py install --extras $(call sh,EXTRAS) $(if $(ALLOW_CPU),--allow-cpu)

simd: install ## build pillow-simd with AVX2 in Pillow's place, or say what is missing
	@$(call sh,PYTHON) .ci/environment.py simd

demo: install ## the whole way on small made-up archives: extract, shard, verify, train, evaluate
	$(BIN)/imagenet-prep sample-data --out $(call sh,DEMO)/archives
	$(BIN)/imagenet-prep extract $(call sh,DEMO)/archives --out $(call sh,DEMO)/images
	$(BIN)/imagenet-prep shard $(call sh,DEMO)/archives --out $(call sh,DEMO)/shards
	$(BIN)/imagenet-prep verify $(call sh,DEMO)/shards
	$(BIN)/resnet train --shards $(call sh,DEMO)/shards --out $(call sh,DEMO)/run $(DEMO_TRAIN) $(ARGS)
	$(BIN)/resnet eval $(call sh,DEMO)/run/best.pt --shards $(call sh,DEMO)/shards
	$(BIN)/resnet info $(call sh,DEMO)/run

test: install ## the default test suite
	$(BIN)/python -m pytest $(ARGS)

test-all: EXTRAS := $(EXTRAS),readers
test-all: install ## the slow tests too, and those with the extra `readers` (1 GB)
	$(BIN)/python -m pytest -m "" $(ARGS)

test-sdaa: install ## the trainer's own tests on simulated SDAA cards; needs g++
	IMAGENET_RESNET_TEST_DEVICE=sdaa $(BIN)/python -m pytest $(TRAINER_TESTS) $(ARGS)

proof: install ## the trainer against a plain one, and killed, on CIFAR-10's pictures in the tar CIFAR
	$(BIN)/python tests/proof/cifar10.py curves killed --images $(call sh,CIFAR) $(ARGS)

check: install ## format, lint and types
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy

bench: install ## every benchmark, ours and its peers, quickly
	set -e; for file in tests/benchmarks/[a-z]*.py; do $(BIN)/python "$$file" $(or $(ARGS),--quick); done

doctor: install ## what is wrong with this machine and its devices
	$(BIN)/resnet doctor $(ARGS)

extract: install ## ARCHIVES into class folders in DATA; optional, shards need only the archives
	$(BIN)/imagenet-prep extract $(call sh,ARCHIVES) --out $(call sh,DATA) $(ARGS)

organize: install ## validation pictures in VAL, extracted by hand, into class folders in place
	$(BIN)/imagenet-prep organize-val $(call sh,VAL) $(ARGS)

shard: install ## ARCHIVES, or class folders, into SHARDS
	$(BIN)/imagenet-prep shard $(call sh,ARCHIVES) --out $(call sh,SHARDS) $(ARGS)

verify: install ## check every shard in SHARDS
	$(BIN)/imagenet-prep verify $(call sh,SHARDS) $(ARGS)

train: install ## train MODEL from SHARDS on CARDS cards into RUN
	$(BIN)/resnet train --shards $(call sh,SHARDS) --model $(call sh,MODEL) $(if $(CARDS),--cards $(call sh,CARDS)) \
	    --out $(call sh,RUN) $(ARGS)

eval: install ## exact accuracy of RUN's best checkpoint on SHARDS
	$(BIN)/resnet eval $(call sh,RUN)/best.pt --shards $(call sh,SHARDS) $(ARGS)

export: install ## RUN's best checkpoint as ONNX
	$(BIN)/resnet export $(call sh,RUN)/best.pt --out $(call sh,RUN)/$(call sh,MODEL).onnx $(ARGS)

report: install ## RUN's curves on a page, RUN/report.html; more runs and options with ARGS
	$(BIN)/resnet report $(call sh,RUN) --out $(call sh,RUN)/report.html $(ARGS)

docker: ## the container image; ARGS="--build-arg BASE=IMAGE" for another base
	docker build --tag imagenet-resnet $(ARGS) .

clean: ## remove .venv, the demo in demo/ and caches; data and runs stay
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find prep shards training tests .ci -name __pycache__ -exec rm -rf {} +
