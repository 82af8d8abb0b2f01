"""The HTML report: collect one results folder a machine, draw the charts, render one self-contained page."""
