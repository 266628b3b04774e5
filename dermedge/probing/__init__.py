"""Evaluate a teacher's frozen features by published protocols."""
