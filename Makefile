# One entry for people and CI. On a new machine with Rust and a C compiler every target installs what it needs.

CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Built by you, run by root: `cargo test` starts the test programs through this.
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
AS_ROOT := $(if $(SUDO),CARGO_TARGET_$(HOST)_RUNNER="sudo -E")
TOOLS := target/tools
MUSL := x86_64-unknown-linux-musl
MUSL_ARM := aarch64-unknown-linux-musl

.PHONY: help demo test check bench static check-arm advisories
help: ## Say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

demo: ## Build, then show the whole path: registry, plugin, kubelet, mount
	$(CARGO) run --quiet -- demo

# $(call need,command,package): install a Debian package when its command is missing.
need = command -v $(1) >/dev/null || { $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq $(2); }

test: ## Install what the tests need, run all tests (as root: they mount)
	@$(call need,docker-registry,docker-registry)
	@$(call need,unshare,util-linux)
	@$(call need,python3,python3)
	@$(call need,mkfs.ext4,e2fsprogs)
	@$(call need,losetup,mount)
	$(AS_ROOT) $(CARGO) test

check: $(TOOLS)/bin/cargo-deny ## Format, lints as errors, licences and sources, documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(TOOLS)/bin/cargo-deny check licenses bans sources
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

$(TOOLS)/bin/cargo-deny:
	$(CARGO) install --quiet --locked --root $(TOOLS) cargo-deny@0.20.2

advisories: $(TOOLS)/bin/cargo-deny ## Known vulnerabilities of dependencies; needs github.com
	$(TOOLS)/bin/cargo-deny check advisories

bench: ## Compare with other tools, print the table that the README quotes
	@$(call need,docker-registry,docker-registry)
	@$(call need,skopeo,skopeo)
	@$(call need,curl,curl)
	@$(call need,openssl,openssl)
	$(CARGO) bench --bench compare

static: ## The static x86-64 binary
	@$(call need,musl-gcc,musl-tools)
	rustup target add $(MUSL)
	CC_x86_64_unknown_linux_musl=musl-gcc $(CARGO) build --release --target $(MUSL)
	@ls -l target/$(MUSL)/release/ocivol | awk '{printf "%s: %.1f MB\n", $$NF, $$5 / 1e6}'

check-arm: ## Does it compile for 64-bit ARM?
	@$(call need,aarch64-linux-gnu-gcc,gcc-aarch64-linux-gnu)
	rustup target add $(MUSL_ARM)
	CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc $(CARGO) check --target $(MUSL_ARM)
