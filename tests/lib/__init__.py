# SPDX-License-Identifier: MIT
"""Helpers of the tests: run (programs), peers (other people's tools), images (builders), corrupt (damage),
workload (random guest writes with a shadow), serve (a running `byre serve`)."""
