"""Read, import, check, split and draw data sets."""
