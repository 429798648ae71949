# godwit. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
INSTALL := tests/tools/install

.PHONY: help
help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.PHONY: demo
demo: ## Watch a guest move between two hosts (KEEP=1 leaves it all running)
	@tests/prepare programs
	@target/debug/demo

.PHONY: test
test: ## Run all tests
	@tests/run

.PHONY: test-all
test-all: ## Run all tests, and the long ones: the model with three faults, deadlines that run out, many and new random histories; then deny
	@tests/run --long
	@tests/deny

.PHONY: model
model: ## Check the handover's model with FAULTS=3 in one history (takes a while), and print how each mutant is caught
	@GODWIT_MODEL_FAULTS=$(or $(FAULTS),3) cargo test -p godwit-handover --test model -- --nocapture --test-threads 1

.PHONY: simulate
simulate: ## Run the real controller and agents in SEEDS=1000 simulated worlds with random faults, from FROM=1 on; a failing seed is named with its replay
	@cargo run --quiet --bin simulate -- seeds $(or $(SEEDS),1000) $(FROM)

.PHONY: sweep
sweep: ## Crash, or lose a host for good, at every write, command and message of every scenario of the simulation, and lose each event and answer once
	@cargo run --quiet --bin simulate -- sweep $(SCENARIO)

.PHONY: faults
faults: ## Run every case of bad input and faults on real parts, the long ones too, and print the table of what came of each cell (ONLY=cell for the cells alone)
	@tests/prepare programs
	@cargo test --quiet -p godwit-lab --test faults -- --include-ignored $(ONLY)

.PHONY: upgrade
upgrade: ## Upgrade agents and controller in mid-migration, and mix them, with programs of one protocol version ago (built from the history the first time)
	@tests/prepare programs
	@tests/tools/older
	@cargo test --quiet -p godwit-lab --test upgrade -- --include-ignored $(ONLY)

.PHONY: fuzz
fuzz: ## Search for bytes that our decoders bear badly (FOR=60 seconds each, ONLY=order for one; it goes on where the last search ended)
	@tests/tools/install system rust
	@tests/fuzz/run --seconds $(or $(FOR),60) $(ONLY)

.PHONY: lint
lint: ## Check formatting, lints, generated files and the chart
	@tests/lint

.PHONY: deny
deny: ## Check licences, sources and known weaknesses of what is built in (builds cargo-deny the first time)
	@tests/deny

.PHONY: bench
bench: ## Measure, and compare with the targets (some 35 minutes)
	@tests/prepare bench
	@GODWIT_LOG=info,godwit_agent::handover=debug target/release/bench

.PHONY: lab
lab: ## Leave a control plane and two hosts running, and say how to use them
	@tests/prepare programs
	@target/debug/lab up

.PHONY: lab-down
lab-down: ## Remove every lab
	@target/debug/lab down

.PHONY: generate
generate: ## Write the CRD manifests from the Rust types
	cargo run --quiet -p godwit-crds --features generate --bin generate -- deploy/crds
	cp deploy/crds/*.yaml charts/godwit/crds/
