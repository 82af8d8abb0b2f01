"""Measuring: timing, statistics, verification, roofline, accuracy."""
