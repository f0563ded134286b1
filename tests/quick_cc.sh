#!/bin/sh
# A C compiler that spends little time on optimizing, for tests that run emitted headers for a
# moment: its options win over those of its caller.
exec cc "$@" -Og
