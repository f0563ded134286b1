# vqkvc - make help lists the targets.
SHELL := /bin/bash
BUILD ?= build
CC ?= gcc
PREFIX ?= /usr/local
VERSION := 0.1.0

PKGS := sqlite3 openblas lapacke jansson libpcre2-8 libxxhash
WARN := -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wconversion -Wno-sign-conversion
OPT ?= -O2 -g
CFLAGS_ALL = -std=c11 -D_GNU_SOURCE -DVQKVC_VERSION='"$(VERSION)"' $(WARN) $(OPT) -fopenmp -ffp-contract=off \
	-Icompiler -I. $(shell pkg-config --cflags $(PKGS)) $(CFLAGS)
LIBS_ALL = $(LDFLAGS) $(shell pkg-config --libs $(PKGS)) -fopenmp -ldl -lm

LIB_SRC := $(sort $(wildcard compiler/base/*.c compiler/model/*.c compiler/capture/*.c compiler/fit/*.c \
	calib_db/*.c compiler/plan/*.c gen/*.c compiler/eval/*.c compiler/command/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
TEST_SRC := $(sort $(wildcard tests/test_*.c))
TEST_BIN := $(TEST_SRC:tests/%.c=$(BUILD)/tests/%)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

$(BUILD)/libvqkvc.a: $(LIB_OBJ)
	rm -f $@ && ar rcs $@ $^

$(BUILD)/tests/%: tests/%.c $(BUILD)/libvqkvc.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -Itests -MMD -MP $< $(BUILD)/libvqkvc.a -o $@ $(LIBS_ALL) -lcriterion

-include $(LIB_OBJ:.o=.d)
