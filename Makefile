# Each target installs what it needs (apt-get or dnf) and can be called first on a fresh machine with Rust.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
export PATH := $(PATH):/usr/sbin:/sbin

# One selection of packages for all optimised programs, so that what one target has built another does not build again.
RELEASE := $(CARGO) build --release --workspace --bin spillway

# Network namespaces need root. As root, a test that would have to be skipped is a failure.
ROOT := $(filter 0,$(shell id -u))
SUDO := $(if $(ROOT),,sudo)

# How long `make fuzz` runs each target.
SECONDS ?= 60

# How long a storm or a soak lasts, unless SECONDS is given; a storm may also be told its EVENTS.
lasting = $(if $(filter file,$(origin SECONDS)),$(1),$(SECONDS))
SEED ?= $(shell date +%s)

.PHONY: help demo test lint docs bench fuzz storm soak systemd dependencies

help: ## lists the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

# With ARGS=--kubernetes the tenants come from a stand-in of the Kubernetes API, a program of its own.
demo: dependencies ## builds the gateway and shows it at work: two tenants, two nodes, real traffic
	$(RELEASE) $(if $(findstring --kubernetes,$(ARGS)),--bin spillway-apiserver)
	$(SUDO) $(TARGET)/release/spillway demo $(ARGS)

# Tests start the programs that were built with them. One selection of packages for all of it builds each dependency once.
test: dependencies ## runs every test; as root also those in network namespaces
	$(CARGO) test --workspace --no-run
	$(if $(ROOT),REQUIRE_NETNS=1) $(CARGO) test --workspace $(ARGS)

lint: dependencies ## checks format, lints, documentation and generated files
	@for tool in fmt:rustfmt clippy:clippy; do $(CARGO) $${tool%:*} --version >/dev/null 2>&1 || \
		{ echo "error: cargo $${tool%:*} is missing; add it: rustup component add $${tool#*:}" >&2; exit 1; }; done
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --workspace --all-targets --features spillway-fuzz/targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	$(CARGO) test -q --workspace --test reference

docs: dependencies ## writes the references in docs/ anew, from the code
	UPDATE=1 $(CARGO) test -q --workspace --test reference the_references_are_as_the_code

# With ARGS='engine', 'wire --flows 1024' or any other measurement it measures that instead.
bench: dependencies ## measures the gateway on this machine beside its peers, under five minutes
	$(RELEASE) --bin spillway-bench
	$(SUDO) $(TARGET)/release/spillway-bench $(or $(ARGS),short --report $(TARGET)/bench)

fuzz: ## feeds anything to the parser and the pipeline, SECONDS each (60)
	@scripts/install-deps fuzz
	@scripts/fuzz $(SECONDS) $(abspath $(TARGET))/fuzz

storm: dependencies ## throws everything at the gateway, SECONDS long (600), and counts what leaks; SEED, EVENTS
	$(RELEASE)
	STORM_PROGRAM=$(abspath $(TARGET))/release/spillway STORM_SEED=$(SEED) STORM_EVENTS=$(EVENTS) \
		$(if $(EVENTS),,STORM_SECONDS=$(call lasting,600)) REQUIRE_NETNS=1 \
		$(CARGO) test --workspace --test storm -- --nocapture

soak: dependencies ## lets tenants and sessions come and go for SECONDS (3600) and tells whether what is used stays flat
	$(RELEASE)
	SOAK_PROGRAM=$(abspath $(TARGET))/release/spillway SOAK_SEED=$(SEED) \
		SOAK_SECONDS=$(call lasting,3600) REQUIRE_NETNS=1 \
		$(CARGO) test --workspace --test soak -- --nocapture

systemd: dependencies ## boots this machine's systemd beside it and has it start, restart, watch over and stop the service
	$(RELEASE)
	SERVICE_PROGRAM=$(abspath $(TARGET))/release/spillway SERVICE_TOLD=1 REQUIRE_NETNS=1 \
		$(CARGO) test --workspace --test service -- --nocapture

dependencies:
	@scripts/install-deps
