"""Read bundles, preprocess images, run an engine and decode its outputs.

The package needs numpy and Pillow only. An engine is imported when a bundle that needs
it is loaded.
"""
