"""Read bundles, preprocess images, run an engine and decode its outputs.

The package needs numpy and Pillow only. Each engine is imported when a bundle asks for
it.
"""
