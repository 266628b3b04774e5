"""Evaluate a bundle on a table of labelled images; needs no torch."""
