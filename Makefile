# SPDX-License-Identifier: MIT
# A thin front for meson and ninja. See CONTRIBUTING.md for how to build and test by hand.
#
#   make [serve] [IMAGE=disk.qcow2]   install what is missing, build, serve the image (or a demo disk) over NBD
#   make all                          build/byre and the libraries
#   make check [SUITE=a,b] [TEST=substring]
#   make bench [ROWS=a,b] [PEER_PREFIX=dir] [BENCH_DIR=dir]   (and what bench/README.md lists)
#   make guest | founding [SECONDS_ALONE=n] | kill-matrix [KILLS=n]   a real guest, a move to a slow target, kills of servers with jobs: their figures
#   make soak [SOAK_SECONDS=n] | asan | tsan | coverage   (each with TEST=, coverage with SUITE= too)
#   make install [PREFIX=dir] [DESTDIR=dir] | clean | deps
#
# CI=true turns warnings into errors and a missing peer program into a failure.

SHELL := /bin/bash
PY := /usr/bin/python3
PREFIX ?= /usr/local
.DEFAULT_GOAL := serve
.PHONY: all serve check guest founding kill-matrix bench soak asan tsan coverage install clean deps
.NOTPARALLEL:

deps:
	@tools/deps.sh

all: deps
	@tools/build.sh plain

# Only what serving needs: the first start is quicker without the tests.
serve: deps
	@tools/build.sh plain build -- byre
	@exec tools/serve.sh $(if $(IMAGE),'$(IMAGE)')

check: deps
	@exec $(PY) tools/check.py --suite '$(SUITE)' --test '$(TEST)'

asan: deps
	@exec $(PY) tools/check.py --suite asan --test '$(TEST)'

tsan: deps
	@exec $(PY) tools/check.py --suite tsan --test '$(TEST)'

soak: deps
	@exec env SOAK_SECONDS='$(SOAK_SECONDS)' $(PY) tools/check.py --suite soak --test '$(TEST)'

guest: all
	@exec $(PY) -B -m pytest -q -s tests/guest

founding: all
	@exec $(PY) -B tests/founding/founding.py $(if $(SECONDS_ALONE),--seconds '$(SECONDS_ALONE)')

kill-matrix: all
	@exec $(PY) -B tests/kill/matrix.py $(if $(KILLS),--kills '$(KILLS)')

coverage: deps
	@exec $(PY) tools/coverage.py --suite '$(SUITE)' --test '$(TEST)'

bench: all
	@exec $(PY) bench/run.py $(if $(ROWS),--rows '$(ROWS)') $(if $(PEER_PREFIX),--peer-prefix '$(PEER_PREFIX)') $(if $(BENCH_DIR),--dir '$(BENCH_DIR)')

install: deps
	@PREFIX='$(PREFIX)' tools/build.sh plain
	@meson install -C build --no-rebuild $(if $(DESTDIR),--destdir '$(DESTDIR)')

clean:
	rm -rf build build-asan build-tsan build-clang build-cov
