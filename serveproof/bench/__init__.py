"""Measuring: inputs, verification, timing, statistics, roofline, memory. Times exist only for what verified."""
