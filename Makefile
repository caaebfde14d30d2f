# One entry for people and CI. On a new machine with Rust and a C compiler every target installs what it needs; those that
# start programs of other projects also need Go, which builds them.

CARGO ?= cargo
export CARGO_NET_RETRY := 10
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Built by you, run by root: `cargo test` starts the test programs through this.
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)
AS_ROOT := $(if $(SUDO),CARGO_TARGET_$(HOST)_RUNNER="sudo -E")
TOOLS := target/tools
MUSL := x86_64-unknown-linux-musl
MUSL_ARM := aarch64-unknown-linux-musl

# Seconds for each fuzz target.
FUZZ_SECONDS ?= 40
FUZZ_TARGETS := tar decompress unpack merge index authority answers
HELM := v3.22.0
HELM_FOUR := v4.3.1
# Of the client that Helm 3 is built with (its go.mod). It has to be told, or it believes in Kubernetes 1.20.
HELM_KUBERNETES := 1.37
CSI_SANITY := v5.6.0
# The chart is tried with all of these; the last one renders manifests/install.yaml.
KUBERNETES := 1.29.0 1.30.0 1.31.0 1.32.0 1.33.0 1.34.0 1.35.0 1.36.0 1.37.0

# The node that `make e2e` runs pods on. Its Kubernetes is what tests/e2e/kubernetes/go.mod says.
NODE_KUBERNETES := $(shell sed -n 's|.*k8s.io/kubernetes v\([0-9.]*\).*|\1|p' tests/e2e/kubernetes/go.mod)
NODE_MODULES := $(shell cat tests/e2e/kubernetes/go.mod tests/e2e/kubernetes/go.sum | sha256sum | cut -c1-8)
KUBERNETES_DIR := $(TOOLS)/kubernetes-$(NODE_KUBERNETES)-$(NODE_MODULES)
PROVISIONER_DIR := $(TOOLS)/provisioner-$(shell cat tests/e2e/provisioner/go.mod tests/e2e/provisioner/go.sum | sha256sum | cut -c1-8)
NODE_CONTAINERD := 2.4.2
NODE_RUNC := 1.5.2

.PHONY: help demo test check conformance chart-real e2e node-up node-down node-shell node-tools interop manifests metrics image release release-dry \
	release-files release-binaries release-tools release-elsewhere fuzz bench bench-node bench-http2 bench-warm bench-scale instructions chart-elsewhere docs soak powercuts \
	interleavings static check-arm advisories dashboard fanout
help: ## Say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 18

demo: ## Build, then show the whole path: registry, plugin, kubelet, mount
	$(CARGO) run --quiet -- demo

# $(call again,command): what goes over the network is tried three times.
again = { $(1); } || { sleep 10; $(1); } || { sleep 30; $(1); }
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300
# $(call package,package): install a Debian package.
package = { $(call again,$(APT) update && $(APT) install -y $(1)); }
# $(call need,command,package): the same when its command is missing.
need = command -v $(1) >/dev/null || $(call package,$(2))

test: ## Install what the tests need, run all tests (as root: they mount)
	@$(call need,docker-registry,docker-registry)
	@$(call need,unshare,util-linux)
	@$(call need,python3,python3)
	@$(call need,mkfs.ext4,e2fsprogs)
	@$(call need,mkfs.xfs,xfsprogs)
	@$(call need,mkfs.btrfs,btrfs-progs)
	@$(call need,losetup,mount)
	@$(call need,umoci,umoci)
	@$(call need,skopeo,skopeo)
	@$(call need,buildah,buildah)
	@$(call need,ip,iproute2)
	@$(call need,openssl,openssl)
	@$(call need,fincore,util-linux-extra)
	$(AS_ROOT) $(CARGO) test

interleavings: ## Run what threads and tasks share in tens of thousands of orders
	$(CARGO) test --lib --features interleavings -- interleavings

soak: ## Hours of bounded load, and whether anything grows: SOAK_MINUTES=180
	$(AS_ROOT) env OCIVOL_SOAK_MINUTES=$(SOAK_MINUTES) $(CARGO) test --test suite -- --nocapture crash::soak

powercuts: ## Cut the power a thousand times, on ext4, XFS and btrfs
	$(AS_ROOT) env OCIVOL_CUTS=334 $(CARGO) test --test suite -- --nocapture store::power_cuts

fuzz: $(TOOLS)/bin/cargo-fuzz ## Feed the code that reads archives, HTTP/2 and what registries say with what it does not expect
	cd fuzz && export PATH="$(abspath $(TOOLS))/bin:$$PATH" RUSTC_BOOTSTRAP=1 && cargo fuzz build && \
	for target in $(FUZZ_TARGETS); do \
		mkdir -p corpus/$$target seeds/$$target; \
		cargo fuzz run $$target corpus/$$target seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) \
			-rss_limit_mb=1024 -timeout=60 -max_len=16384 -verbosity=0 -print_funcs=0 -print_final_stats=1 || exit 1; \
	done

# Nightly is not needed: RUSTC_BOOTSTRAP lets the pinned compiler have the sanitizer.
$(TOOLS)/bin/cargo-fuzz:
	$(call again,$(CARGO) install --quiet --locked --root $(TOOLS) cargo-fuzz@0.13.2)

# $(call rendered,file,options): the chart as plain manifests.
rendered = $(TOOLS)/bin/helm template ocivol charts/ocivol --namespace ocivol --set namespace.create=true --skip-tests \
	--kube-version $(lastword $(KUBERNETES)) $(2) > $(1)
# With the rights to read pull secrets, of all namespaces and of two: tests/manifests.rs looks at them.
PULL_SECRETS := --set credentials.imagePullSecrets.enabled=true
EVENTS := --set events.enabled=true
MONITORING := --set monitoring.assumeCRDs=true --set monitoring.podMonitor.enabled=true --set monitoring.rules.enabled=true \
	--set monitoring.dashboard.enabled=true --set controller.enabled=true
PULL_SECRETS_OF_TWO := $(PULL_SECRETS) --set credentials.imagePullSecrets.namespaces[0]=shop \
	--set credentials.imagePullSecrets.namespaces[1]=bank
CONTROLLER := --set controller.enabled=true --set controller.replicas=2 --set storageClasses[0].name=models \
	--set 'storageClasses[0].parameters.reference=registry.example.com/models/$${pvc.metadata.name}:v1' \
	--set storageClasses[0].provisionerSecret.name=regcred --set storageClasses[0].provisionerSecret.namespace=shop
PREPULL := --set prepull.enabled=true --set prepull.pullSecrets[0]=regcred
PREPULL_CONTROLLER := --set controller.enabled=true --set prepull.nodeLabels=true --set prepull.startupTaint.enabled=true --set prepull.bytesPerSecond=200MiB
# $(call rendered-all,install.yaml,directory): all that is rendered and kept.
rendered-all = $(call rendered,$(1)) && $(call rendered,$(2)/pull-secrets.yaml,$(PULL_SECRETS)) && \
	$(call rendered,$(2)/pull-secrets-of-two.yaml,$(PULL_SECRETS_OF_TWO)) && \
	$(call rendered,$(2)/events.yaml,$(EVENTS)) && \
	$(call rendered,$(2)/monitoring.yaml,$(MONITORING)) && \
	$(call rendered,$(2)/controller.yaml,$(CONTROLLER)) && \
	$(call rendered,$(2)/prepull.yaml,$(PREPULL)) && \
	$(call rendered,$(2)/prepull-controller.yaml,$(PREPULL) $(PREPULL_CONTROLLER))

# What this version of the chart takes. When the version changes the file stays, for `make conformance`: later ones have to take it as well.
VALUES_OF := tests/packaging/values-of/$(shell sed -n 's/^version: //p' charts/ocivol/Chart.yaml).yaml
values-taken = { cat charts/ocivol/values.yaml; echo ---; cat tests/chart/accepted.yaml; }

manifests: $(TOOLS)/bin/helm ## Render manifests/install.yaml from the chart, and what the tests look at
	$(call rendered-all,manifests/install.yaml,tests/packaging/rendered)
	$(values-taken) > $(VALUES_OF)

# Of version 3 and of version 4.
HELMS := $(TOOLS)/bin/helm $(TOOLS)/helm4/helm

conformance: $(HELMS) $(TOOLS)/bin/csi-sanity ## csi-sanity against plugin and controller; values that the chart takes and refuses
	sh tests/chart/templates.sh charts/ocivol "$(KUBERNETES)" $(HELMS)
	@$(call need,unshare,util-linux)
	@$(call need,docker-registry,docker-registry)
	@$(call need,curl,curl)
	@$(call need,ip,iproute2)
	$(CARGO) build
	$(SUDO) sh tests/conformance.sh target/debug/ocivol $(TOOLS)/bin/csi-sanity

chart-real: $(KUBERNETES_DIR) $(HELMS) ## The chart with all kinds of values at a real API server; needs Go
	@$(call need,etcd,etcd-server)
	@$(call need,ip,iproute2)
	@$(call need,openssl,openssl)
	@$(call need,python3,python3)
	@$(call need,unshare,util-linux)
	$(SUDO) unshare --net --pid --fork --kill-child --mount-proc \
		sh tests/chart/real.sh charts/ocivol $(abspath $(KUBERNETES_DIR)) $(HELMS)

# Others than the one that `make e2e` runs.
API_SERVERS ?= 1.37.2

chart-elsewhere: $(KUBERNETES_DIR) $(HELMS) ## The same at other API servers, which are built first; needs Go
	@$(call need,etcd,etcd-server)
	for version in $(API_SERVERS); do \
		[ -x $(TOOLS)/api-server-$$version/kube-apiserver ] || \
			sh tests/chart/api_server.sh $$version $(abspath $(TOOLS))/api-server-$$version $(abspath $(KUBERNETES_DIR)) || exit 1; \
		$(SUDO) unshare --net --pid --fork --kill-child --mount-proc \
			sh tests/chart/real.sh charts/ocivol $(abspath $(TOOLS))/api-server-$$version $(HELMS) || exit 1; \
	done

# Numbers of nodes, the fewest first.
FANOUT_NODES ?= 100 1000

fanout: $(KUBERNETES_DIR) $(TOOLS)/bin/helm ## What 1,000 nodes' pre-pulls cost an API server; needs Go
	@$(call need,etcd,etcd-server)
	@$(call need,ip,iproute2)
	@$(call need,openssl,openssl)
	@$(call need,python3,python3)
	@$(call need,unshare,util-linux)
	mkdir -p target/tmp && $(call rendered,target/tmp/fanout.yaml,$(PREPULL) --set controller.enabled=true)
	$(SUDO) unshare --net --pid --fork --kill-child --mount-proc \
		sh tests/fanout/run.sh target/tmp/fanout.yaml $(abspath $(KUBERNETES_DIR)) $(FANOUT_NODES)

# Minutes of `make soak`.
SOAK_MINUTES ?= 180

# Scenarios whose names contain one of these words; all without.
SCENARIOS ?=

e2e: node-tools ## Run pods on a node of real parts: kubelet, containerd, runc, API server, registry; needs Go
	$(MAKE) --no-print-directory image
	$(SUDO) target/debug/e2e run $(SCENARIOS)

node-up: node-tools ## Start such a node, with ocivol, and keep it
	$(MAKE) --no-print-directory image
	$(SUDO) target/debug/e2e up

node-down: ## End it
	$(SUDO) target/debug/e2e down

node-shell: ## A shell on it: kubectl, ctr, helm
	$(SUDO) target/debug/e2e shell

RUNTIME_DIR := $(TOOLS)/containerd-$(NODE_CONTAINERD)-runc-$(NODE_RUNC)
# Built once for each version. What is at these names is the version that runs.
node-tools: $(KUBERNETES_DIR) $(PROVISIONER_DIR) $(RUNTIME_DIR) $(TOOLS)/bin/helm
	@$(call need,etcd,etcd-server)
	@$(call need,mkfs.ext4,e2fsprogs)
	@$(call need,docker-registry,docker-registry)
	@$(call need,ip,iproute2)
	@$(call need,openssl,openssl)
	@$(call need,fincore,util-linux-extra)
	@$(call need,skopeo,skopeo)
	@test -x /usr/lib/cni/bridge || $(call package,containernetworking-plugins)
	@dpkg -s busybox-static >/dev/null 2>&1 || $(call package,busybox-static)
	ln -sfn $(notdir $(KUBERNETES_DIR)) $(TOOLS)/kubernetes
	ln -sfn $(notdir $(PROVISIONER_DIR)) $(TOOLS)/provisioner
	ln -sfn $(notdir $(RUNTIME_DIR)) $(TOOLS)/runtime
	$(call again,rustup target add $(MUSL))
	$(CARGO) build --release --target $(MUSL) --package attempts
	cp target/$(MUSL)/release/attempts $(TOOLS)/attempts
	$(CARGO) build --package e2e

# $(call version,value): what Kubernetes' programs say of themselves.
version = -X k8s.io/component-base/version.gitVersion=v$(1) -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(1)))

$(KUBERNETES_DIR):
	@command -v go >/dev/null || { echo "this needs Go 1.26 or newer: https://go.dev/doc/install" >&2; exit 1; }
	rm -rf $@.part && mkdir -p $@.part
	cd tests/e2e/kubernetes && { $(call again,go mod download); } && \
		CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $(call version,$(NODE_KUBERNETES))" -o $(abspath $@.part)/ tool && \
		CGO_ENABLED=0 go test -c -trimpath -ldflags "-s -w $(call version,$(NODE_KUBERNETES))" \
			-o $(abspath $@.part)/e2e.test k8s.io/kubernetes/test/e2e && \
		cc -Os -static -s -DVERSION=v1 -o $(abspath $@.part)/pause \
			"$$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c"
	mv $@.part $@

$(PROVISIONER_DIR):
	rm -rf $@.part && mkdir -p $@.part
	cd tests/e2e/provisioner && { $(call again,go mod download); } && \
		CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(abspath $@.part)/ tool
	mv $@.part $@

$(RUNTIME_DIR):
	@test -e /usr/include/seccomp.h || $(call package,libseccomp-dev)
	@command -v pkg-config >/dev/null || $(call package,pkg-config)
	rm -rf $@.part && mkdir -p $@.part
	$(call again,GOBIN=$(abspath $@.part) go install -ldflags "-s -w" $(foreach name,containerd ctr containerd-shim-runc-v2,\
		github.com/containerd/containerd/v2/cmd/$(name)@v$(NODE_CONTAINERD)))
	$(call again,GOBIN=$(abspath $@.part) CGO_ENABLED=1 go install -ldflags "-s -w" -tags seccomp \
		github.com/opencontainers/runc@v$(NODE_RUNC))
	mv $@.part $@

interop: ## Push with other projects' tools, mount, compare; pull through their servers; slow, needs Go
	@command -v go >/dev/null || { echo "this needs Go 1.26 or newer: https://go.dev/doc/install" >&2; exit 1; }
	@$(call need,docker-registry,docker-registry)
	@$(call need,umoci,umoci)
	@$(call need,skopeo,skopeo)
	@$(call need,buildah,buildah)
	@$(call need,gpg,gnupg)
	@$(call need,nginx,nginx-light)
	@$(call need,ip,iproute2)
	@$(call need,openssl,openssl)
	@$(call need,protoc,protobuf-compiler)
	@ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1 || $(call package,libclang-dev)
	@python3 -c 'import venv, ensurepip' 2>/dev/null || $(call package,python3-venv)
	sh tests/interop/install.sh $(TOOLS)/interop
	$(CARGO) build
	$(SUDO) sh tests/interop/run.sh target/debug/ocivol $(TOOLS)/interop

# $(call go,module@version,flags): a tool of the Go module proxy, as $@.
go = @command -v go >/dev/null || { echo "this needs Go 1.26 or newer: https://go.dev/doc/install" >&2; exit 1; }; \
	$(call again,GOBIN=$(abspath $(@D)) go install $(2) $(1))

# What Helm's own Makefile says to the linker.
HELM_FLAGS := -X helm.sh/helm/v3/internal/version.version=$(HELM) $(foreach package,chartutil lint/rules,\
	-X helm.sh/helm/v3/pkg/$(package).k8sVersionMajor=$(word 1,$(subst ., ,$(HELM_KUBERNETES))) \
	-X helm.sh/helm/v3/pkg/$(package).k8sVersionMinor=$(word 2,$(subst ., ,$(HELM_KUBERNETES))))

# A file beside each says which version it is: one of another version is built anew.
$(TOOLS)/bin/helm: $(TOOLS)/bin/helm-$(HELM)
	@test -x $@
$(TOOLS)/bin/helm-$(HELM):
	$(call go,helm.sh/helm/v3/cmd/helm@$(HELM),-ldflags "-s -w $(HELM_FLAGS)")
	rm -f $(@D)/helm-v* && touch $@

$(TOOLS)/helm4/helm: $(TOOLS)/helm4/helm-$(HELM_FOUR)
	@test -x $@
$(TOOLS)/helm4/helm-$(HELM_FOUR):
	$(call go,helm.sh/helm/v4/cmd/helm@$(HELM_FOUR),-ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$(HELM_FOUR)")
	rm -f $(@D)/helm-v* && touch $@

$(TOOLS)/bin/csi-sanity:
	$(call go,github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$(CSI_SANITY))

# The storage of buildah for this alone.
BUILDAH := buildah --root target/image/storage --runroot target/image/run --storage-driver vfs

# Mozilla's certificate authorities, and none that this machine trusts beside them.
.PHONY: target/ca-certificates.crt
target/ca-certificates.crt:
	mkdir -p target
	$(CARGO) run --quiet --locked --example ca-certificates > $@

image: static target/ca-certificates.crt ## The container image, as an OCI archive: target/ocivol-image.tar
	@$(call need,buildah,buildah)
	@$(call need,skopeo,skopeo)
	@$(call need,umoci,umoci)
	@$(call need,python3,python3)
	@$(call need,openssl,openssl)
	mkdir -p target/image/context
	cp target/ca-certificates.crt target/$(MUSL)/release/ocivol target/image/context
	rm -f target/ocivol-image.tar
	$(SUDO) $(BUILDAH) build --quiet --tag ocivol -f Dockerfile target/image/context >/dev/null
	$(SUDO) $(BUILDAH) push --quiet localhost/ocivol oci-archive:target/ocivol-image.tar:ocivol
	$(SUDO) rm -rf target/image
	$(SUDO) sh tests/image.sh target/ocivol-image.tar target/ca-certificates.crt

# Where release binaries are built: with other flags than those of `make static`, and kept.
PORTABLE := target/portable
RELEASE_TOOLS := $(TOOLS)/release

release-binaries:
	@$(call need,musl-gcc,musl-tools)
	@python3 -c 'import venv, ensurepip' 2>/dev/null || $(call package,python3-venv)
	$(call again,sh release/install.sh $(RELEASE_TOOLS))
	sh release/binaries.sh $(RELEASE_TOOLS) $(PORTABLE) amd64 arm64

release-tools: $(HELMS) target/ca-certificates.crt
	@$(call need,buildah,buildah)
	@$(call need,skopeo,skopeo)
	@$(call need,umoci,umoci)
	@$(call need,docker-registry,docker-registry)
	@$(call need,qemu-aarch64-static,qemu-user-static)
	@$(call need,openssl,openssl)

release-files: release-binaries release-tools ## All that a release publishes, in target/release-files: REGISTRY=ghcr.io
	sh release/assemble.sh $(RELEASE_TOOLS) $(PORTABLE) target/ca-certificates.crt $(or $(REGISTRY),ghcr.io) target/release-files

release: ## Push and sign that: REGISTRY=ghcr.io KEY=~/ocivol.key
	$(if $(and $(REGISTRY),$(KEY)),,$(error say where to, and the private key: make release REGISTRY=ghcr.io KEY=~/ocivol.key))
	@: "$${COSIGN_PASSWORD?is the password of KEY: set it, also if it is empty}"
	sh release/ready.sh
	$(MAKE) --no-print-directory release-files
	sh release/publish.sh $(RELEASE_TOOLS) target/release-files $(REGISTRY) $(KEY)

release-dry: release-binaries release-tools ## A release into a registry of this machine, and what its users do: REGISTRY=127.0.0.1:5055
	sh tests/release/dry.sh $(RELEASE_TOOLS) $(PORTABLE) target/ca-certificates.crt $(or $(REGISTRY),127.0.0.1:5055) target/release-dry

release-elsewhere: release-binaries ## Are the binaries of this commit the same when another directory builds them?
	sh tests/release/elsewhere.sh $(RELEASE_TOOLS) $(PORTABLE)

metrics: $(TOOLS)/bin/promtool ## Alerts, dashboard and names of metrics, as Prometheus' own promtool reads them
	$(TOOLS)/bin/promtool check rules charts/ocivol/files/rules.yaml
	$(TOOLS)/bin/promtool test rules tests/packaging/rules_test.yaml
	$(CARGO) build
	OCIVOL_PROMTOOL=$(abspath $(TOOLS))/bin/promtool $(AS_ROOT) $(CARGO) test --test suite -- monitoring::

# Seconds that the nodes of the picture work.
DASHBOARD_SECONDS ?= 240

dashboard: $(TOOLS)/bin/prometheus ## Draw docs/dashboard.svg: what Prometheus says of three nodes, after four minutes of work
	@$(call need,docker-registry,docker-registry)
	@$(call need,ip,iproute2)
	@$(call need,python3,python3)
	@$(call need,unshare,util-linux)
	$(CARGO) build
	$(SUDO) sh tests/dashboard/run.sh target/debug/ocivol $(TOOLS)/bin/prometheus $(DASHBOARD_SECONDS) docs/dashboard.svg

# Debian's package has them. It is not installed: that would start a Prometheus for the whole machine.
$(TOOLS)/bin/promtool $(TOOLS)/bin/prometheus:
	rm -rf $@.part && mkdir -p $@.part
	cd $@.part && { $(call again,apt-get download prometheus); } && dpkg -x prometheus_*.deb .
	cp $@.part/usr/bin/$(@F) $@
	rm -rf $@.part

check: $(TOOLS)/bin/cargo-deny $(TOOLS)/bin/helm ## Format, lints as errors, licences and sources, documentation, rendered manifests
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(TOOLS)/bin/cargo-deny check licenses bans sources
	mkdir -p target/tmp/rendered && $(call rendered-all,target/tmp/install.yaml,target/tmp/rendered)
	diff -u manifests/install.yaml target/tmp/install.yaml # Not equal: run make manifests.
	diff -ru tests/packaging/rendered target/tmp/rendered # Here, too.
	$(values-taken) | diff -u $(VALUES_OF) - # And here.
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items

$(TOOLS)/bin/cargo-deny:
	$(call again,$(CARGO) install --quiet --locked --root $(TOOLS) cargo-deny@0.20.2)

advisories: $(TOOLS)/bin/cargo-deny ## Known vulnerabilities of dependencies; needs github.com
	$(TOOLS)/bin/cargo-deny check advisories

bench: ## Compare with other tools, print the tables of docs/benchmarks.md
	@$(call need,docker-registry,docker-registry)
	@$(call need,skopeo,skopeo)
	@$(call need,curl,curl)
	@$(call need,openssl,openssl)
	@$(call need,umoci,umoci)
	@$(call need,ctr,containerd)
	@$(call need,podman,podman)
	@$(call need,igzip,isal)
	@$(call need,zstd,zstd)
	@if command -v go >/dev/null; then $(MAKE) --no-print-directory $(RUNTIME_DIR) && \
		ln -sfn $(notdir $(RUNTIME_DIR)) $(TOOLS)/runtime; else echo "no Go: the newest containerd is not compared"; fi
	$(CARGO) bench --bench compare
	$(CARGO) bench --bench throttled
	$(AS_ROOT) $(CARGO) bench --bench volumes

bench-node: node-tools ## How long pods wait for a model, beside image volumes, on the node of e2e; needs Go
	$(MAKE) --no-print-directory image
	$(SUDO) target/debug/e2e bench

bench-http2: ## Would HTTP/2 pay towards a registry?
	@$(call need,nginx,nginx-light)
	@$(call need,openssl,openssl)
	$(CARGO) run --quiet --release --package http2

instructions: ## Count what bytes, files and layers cost, compare with benches/instructions/counts.tsv; WRITE=1 writes that anew
	@$(call need,valgrind,valgrind)
	@$(call need,musl-gcc,musl-tools)
	$(call again,rustup target add $(MUSL))
	$(STATIC) --package instructions
	target/$(MUSL)/release/instructions

bench-scale: ## How time and memory grow with layers, files, bytes and volumes, on one core and on two
	@$(call need,mkfs.ext4,e2fsprogs)
	@$(call need,losetup,mount)
	$(AS_ROOT) $(CARGO) bench --bench scale

bench-warm: ## How much sooner is a model read that is warmed while its engine starts?
	@$(call need,mkfs.ext4,e2fsprogs)
	@$(call need,losetup,mount)
	$(AS_ROOT) $(CARGO) bench --bench warm

docs: ## Write what is generated of docs: cli.md, speed.svg
	$(AS_ROOT) env OCIVOL_WRITE_DOCS=1 $(CARGO) test --test suite -- cli::reference documents::speed

STATIC := OCIVOL_REVISION=$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown) CC_x86_64_unknown_linux_musl=musl-gcc \
	$(CARGO) build --release --target $(MUSL)

static: ## The static x86-64 binary
	@$(call need,musl-gcc,musl-tools)
	$(call again,rustup target add $(MUSL))
	$(STATIC)
	@ls -l target/$(MUSL)/release/ocivol | awk '{printf "%s: %.1f MB\n", $$NF, $$5 / 1e6}'

check-arm: ## Does it compile for 64-bit ARM?
	@$(call need,aarch64-linux-gnu-gcc,gcc-aarch64-linux-gnu)
	$(call again,rustup target add $(MUSL_ARM))
	CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc $(CARGO) check --target $(MUSL_ARM)
