# vqkvc - make help lists the targets.
SHELL := /bin/bash
BUILD ?= build
BUILD_ASAN ?= build-asan
ifeq ($(origin CC),default)
CC := gcc
endif
PREFIX ?= /usr/local
VERSION := 0.1.0
# Seconds that each fuzz target runs, and the seed of its inputs.
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 1
# V=1 shows the commands of the compiler.
Q := $(if $(V),,@)
# GPUs that `make cuda` compiles for, such as "80 90", and plans (scripts/cuda.sh); or all of them.
CUDA_SM ?=
export CUDA_PLANS
# Tests to run: names without "test_", or all of them.
TESTS ?=

PKGS := sqlite3 openblas lapacke jansson libpcre2-8 libxxhash
WARN := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wconversion -Wno-sign-conversion
OPT ?= -O2 -g
ASAN_OPT := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
# Asked on every use, not when this file is read: `deps` may install pkg-config in the same run.
CFLAGS_ALL = -std=c11 -D_GNU_SOURCE -DVQKVC_VERSION='"$(VERSION)"' $(WARN) $(if $(WERROR),-Werror) $(OPT) -fopenmp \
	-ffp-contract=off -Icompiler -I. $(shell pkg-config --cflags $(PKGS)) $(CFLAGS)
LIBS_ALL = $(LDFLAGS) $(shell pkg-config --libs $(PKGS)) -fopenmp -ldl -lm

LIB_SRC := $(sort $(wildcard compiler/base/*.c compiler/model/*.c compiler/capture/*.c compiler/fit/*.c \
	calib_db/*.c compiler/plan/*.c gen/*.c compiler/eval/*.c compiler/command/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
MAIN_SRC := $(wildcard compiler/vqkvc.c)
PROGRAM := $(MAIN_SRC:compiler/vqkvc.c=$(BUILD)/vqkvc)
TEST_SRC := $(sort $(wildcard tests/test_*.c))
TEST_BIN := $(TEST_SRC:tests/%.c=$(BUILD)/tests/%)
TEST_RUN := $(if $(TESTS),$(TESTS:%=$(BUILD)/tests/test_%),$(TEST_BIN))
FUZZ_SRC := $(filter-out tests/fuzz_driver.c,$(sort $(wildcard tests/fuzz_*.c)))
FUZZ_BIN := $(FUZZ_SRC:tests/%.c=$(BUILD)/fuzz/%)

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all help deps test run-tests demo figures regress bench bench-fit cuda bench-cuda lint lint-clang cppcheck sanitize fuzz run-fuzz \
	install uninstall clean FORCE

all: $(BUILD)/libvqkvc.a $(PROGRAM) ## build the compiler, build/vqkvc

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PREFIX DESTDIR CC OPT CFLAGS LDFLAGS BUILD, V=1 (show commands), WERROR=1 (warnings are errors),"
	@echo "  TESTS=\"base ...\" (only these), FUZZ_SECONDS=$(FUZZ_SECONDS), FUZZ_SEED=$(FUZZ_SEED),"
	@echo "  CUDA_SM=\"80 90\", CUDA_PLANS=\"q4_0 auto2\" (of make cuda)"

deps: ## install the Debian packages that building and testing need
	@scripts/deps.sh

# What follows `deps` runs in a make of its own, so that `make -j` cannot compile before it installs.
test: deps ## build and run all tests (TESTS="base ..." for some)
	@+$(MAKE) --no-print-directory run-tests

run-tests: $(PROGRAM) $(TEST_RUN)
	@VQKVC=$(BUILD)/vqkvc scripts/run_tests.sh $(TEST_RUN)

demo: deps ## from the bundled model to a header, a table and two generated texts
	@+$(MAKE) --no-print-directory all
	@scripts/demo.sh

figures: deps ## measure and print one line a figure: name value unit
	@+$(MAKE) --no-print-directory all >&2
	@scripts/figures.sh

regress: deps ## measure tests/regress.csv and docs/fidelity.svg anew (long; needs ../shared/data)
	@+$(MAKE) --no-print-directory all >&2
	@scripts/regress.sh

bench: deps ## time the emitted kernels (results, not tests)
	@+$(MAKE) --no-print-directory all >&2
	@scripts/bench.sh

cuda: deps ## compile emitted CUDA headers for every GPU, where nvcc is; registers and spills of the kernels
	@+$(MAKE) --no-print-directory all >&2
	@scripts/cuda.sh $(CUDA_SM)

bench-cuda: deps ## check and time decoding, prefill and encoding on the GPU that is there (results, not tests)
	@+$(MAKE) --no-print-directory all >&2
	@scripts/bench_cuda.sh

bench-fit: deps ## time and memory of calibration at the size of Llama-3.1-8B (half an hour; results, not tests)
	@+$(MAKE) --no-print-directory all >&2
	@+! $(HAS_FAISS) || $(MAKE) --no-print-directory $(BUILD)/tests/bench_kmeans >&2
	@scripts/bench_fit.sh

lint: lint-clang ## check format, include law, warnings of clang, and what is tracked
	git ls-files -z -- '*.c' '*.h' '*.cuh' '*.cpp' ':!tests/golden' | xargs -0 -r clang-format --dry-run -Werror
	scripts/include_law.sh
	scripts/test_include_law.sh
	scripts/check_repo.sh

lint-clang:
	clang -fsyntax-only -Werror $(CFLAGS_ALL) $(LIB_SRC) $(MAIN_SRC)

cppcheck: ## static analysis by cppcheck, where it is installed (advice, not a gate)
	cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr -Icompiler -I. \
		$(LIB_SRC) $(MAIN_SRC)

sanitize: deps ## run the tests under the address and undefined-behaviour sanitizers
	@+$(MAKE) --no-print-directory BUILD=$(BUILD_ASAN) OPT="$(ASAN_OPT)" run-tests

fuzz: deps ## run every fuzz target FUZZ_SECONDS under the sanitizers
	@+$(MAKE) --no-print-directory BUILD=$(BUILD_ASAN) OPT="$(ASAN_OPT)" run-fuzz

run-fuzz: $(FUZZ_BIN)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) scripts/run_fuzz.sh $(FUZZ_BIN)

install: all ## install under PREFIX (DESTDIR is honoured)
	install -D -m 755 $(BUILD)/vqkvc $(DESTDIR)$(PREFIX)/bin/vqkvc
	install -D -m 644 docs/vqkvc.1 $(DESTDIR)$(PREFIX)/share/man/man1/vqkvc.1
	install -d $(DESTDIR)$(PREFIX)/share/pkgconfig
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' docs/vqkvc.pc.in \
		> $(DESTDIR)$(PREFIX)/share/pkgconfig/vqkvc.pc
	chmod 644 $(DESTDIR)$(PREFIX)/share/pkgconfig/vqkvc.pc

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/vqkvc $(DESTDIR)$(PREFIX)/share/man/man1/vqkvc.1 \
		$(DESTDIR)$(PREFIX)/share/pkgconfig/vqkvc.pc

clean: ## remove everything that was built
	rm -rf $(BUILD) $(BUILD_ASAN)

# Changes only when the command line of the compiler does; everything compiled depends on it.
$(BUILD)/flags: export FLAGS_NOW = $(CC) $(CFLAGS_ALL)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '*' > $(@D)/.gitignore
	@printf '%s\n' "$$FLAGS_NOW" | cmp -s - $@ || printf '%s\n' "$$FLAGS_NOW" > $@

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

$(BUILD)/libvqkvc.a: $(LIB_OBJ)
	@echo "  AR    $@"
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/vqkvc: $(BUILD)/compiler/vqkvc.o $(BUILD)/libvqkvc.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(CFLAGS_ALL) $^ -o $@ $(LIBS_ALL)

$(BUILD)/tests/%: tests/%.c $(BUILD)/libvqkvc.a
	@mkdir -p $(@D)
	@echo "  TEST  $@"
	$(Q)$(CC) $(CFLAGS_ALL) -Itests -MMD -MP -MF $@.d -MT $@ $< $(BUILD)/libvqkvc.a -o $@ $(LIBS_ALL) -lcriterion

# Nothing but `make bench-fit` wants faiss, and that goes without where it is not installed.
HAS_FAISS = echo '\#include <faiss/Clustering.h>' | $(CXX) -E -x c++ - >/dev/null 2>&1
$(BUILD)/tests/bench_kmeans: tests/bench_kmeans.cpp $(BUILD)/libvqkvc.a
	@mkdir -p $(@D)
	@echo "  CXX   $@"
	$(Q)$(CXX) -std=c++17 -O2 -fopenmp -Wall -Wextra -Icompiler -I. $(shell pkg-config --cflags $(PKGS)) \
		$< $(BUILD)/libvqkvc.a -o $@ -lfaiss $(LIBS_ALL)

$(BUILD)/fuzz/%: tests/%.c tests/fuzz_driver.c $(wildcard tests/*.h) $(BUILD)/libvqkvc.a
	@mkdir -p $(@D)
	@echo "  FUZZ  $@"
	$(Q)$(CC) $(CFLAGS_ALL) -Itests $< tests/fuzz_driver.c $(BUILD)/libvqkvc.a -o $@ $(LIBS_ALL)

# Examples run over the header that `make demo` emits; without DEMO_ARGS (further options of `vqkvc
# build`) scripts/demo.sh emits it by the same command.
DEMO_HEADER := $(BUILD)/demo/ref7m_kv.h
$(DEMO_HEADER): $(BUILD)/vqkvc examples/models/ref7m.gguf
	@mkdir -p $(@D)
	$(BUILD)/vqkvc build examples/models/ref7m.gguf --self --prefix ref7m_kv --db $(@D)/vqkvc.db $(DEMO_ARGS) -o $@

$(BUILD)/examples/minimal: examples/minimal.c $(DEMO_HEADER)
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) -std=c99 -O2 -I$(BUILD)/demo $< -o $@ -lm

$(BUILD)/examples/generate: examples/generate.c examples/compressed.c examples/compressed.h $(DEMO_HEADER)
$(BUILD)/examples/vectors: examples/vectors.c
$(BUILD)/examples/generate $(BUILD)/examples/vectors: $(BUILD)/libvqkvc.a
	@mkdir -p $(@D)
	@echo "  LINK  $@"
	$(Q)$(CC) $(CFLAGS_ALL) -I$(BUILD)/demo $(filter %.c,$^) $(BUILD)/libvqkvc.a -o $@ $(LIBS_ALL)

# Embedded through .incbin (base/embed.h), which the compiler's dependency files do not know.
$(filter $(BUILD)/calib_db/%,$(LIB_OBJ)): $(wildcard calib_db/*.sql)
$(filter $(BUILD)/gen/%,$(LIB_OBJ)): $(wildcard runtime/*.h runtime/cuda/*.cuh)
$(filter $(BUILD)/compiler/eval/%,$(LIB_OBJ)): compiler/eval/shim.h compiler/eval/codec_table.h

-include $(LIB_OBJ:.o=.d) $(PROGRAM:%/vqkvc=%/compiler/vqkvc.d) $(TEST_BIN:=.d)
