"""Tests of the metrics, one module for each of theirs."""
