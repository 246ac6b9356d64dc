# make demo            three nodes on this machine play the main job, then leave it clean (KEEP=1: leave the cluster up)
# make test            everything that proves it works (as root: whole clusters; installs what it needs)
# make check           style, types and layers only
# make simulate        clusters under a virtual clock with everything going wrong (SEEDS=1000, FIRST=1; SEED=17 replays one, told in full)
# make chaos           a cluster in the lab with everything going wrong, every word it says checked (MINUTES=20, SEED=17, MANAGERS=5, PICTURE=chaos.svg)
# make bench           the demo's figures: how fast, how much memory
# make bench-mesh      the data plane's figures: programming the kernel
# make bench-dns       the DNS server beside others: Debian's, the Docker Engine's, the bare system calls; every answer is checked
# make bench-orchestrator  the orchestrator's figures against their targets: scheduler, store, API, leader, and those of make bench;
#                  1,000 agents that lose a manager; meshd killed and restarted everywhere under load
# make replay          the docker CLI (Debian's and the newest), requests and docker-py against a mesh and real Engines in swarm mode, all they say compared
#                  (QUICK=1: a minute of it)
# make bench-api       the API beside a real Engine's in swarm mode, at 1, 100 and 1,000 services; 1,000 open event streams;
#                  containers of three nodes; 100 MB through attach, logs, cp and exec of a container on another node
# make vagrant-rehearse  vagrant up and its smoke test on this machine, without boxes, KVM or systemd: ten minutes
# make fuzz-api        the API's fuzz tests with TIMES=20 as many requests, others each time: minutes
# make fuzz-dns        a million mutated packets against the DNS server: minutes
.PHONY: demo test replay check simulate chaos bench bench-mesh bench-dns bench-orchestrator bench-api fuzz-api fuzz-dns vagrant-rehearse bootstrap
BIN := .venv/bin

bootstrap:
	@scripts/bootstrap

demo: bootstrap
	@$(BIN)/meshd demo $(if $(KEEP),--keep)

bench: bootstrap
	@$(BIN)/meshd demo --figures

bench-mesh: bootstrap
	@scripts/bootstrap test
	@$(BIN)/python -m tests.mesh.bench_programming
	@$(BIN)/python -m tests.mesh.bench_traffic

bench-dns: bootstrap
	@$(BIN)/python -m tests.dnsd.bench

bench-orchestrator: bootstrap
	@$(BIN)/python -m tests.orchestrator.bench
	@$(BIN)/python -m tests.orchestrator.dispatcher.bench_attach
	@$(BIN)/python -m tests.lab.bench_managers
	@$(BIN)/meshd demo --figures

bench-api: bootstrap
	@$(BIN)/python -m tests.orchestrator.bench_api
	@$(BIN)/python -m tests.orchestrator.api.bench_fleet
	@$(BIN)/python -m tests.orchestrator.api.bench_streams

fuzz-api: bootstrap
	@HYPOTHESIS_PROFILE=default FUZZ=$(or $(TIMES),20) $(BIN)/pytest --timeout 3600 tests/orchestrator/api/test*_fuzz.py

fuzz-dns: bootstrap
	@$(BIN)/python -m tests.dnsd.fuzz --count 1000000

vagrant-rehearse: bootstrap
	@vagrant/rehearse.sh $(NODES)

check: bootstrap
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -n 5

test: check
	@scripts/bootstrap test
	@scripts/test

replay: bootstrap
	@REPLAY=$(if $(QUICK),quick,1) $(BIN)/pytest tests/replay

simulate: bootstrap
	@$(BIN)/python -m tests.orchestrator.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000) --first $(or $(FIRST),1))

chaos: bootstrap
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),20) --managers $(or $(MANAGERS),5) --picture $(or $(PICTURE),chaos.svg) $(if $(SEED),--seed $(SEED))
