"""The device floor: reads bundles, preprocesses, runs an engine, decodes. numpy and Pillow only; an engine is
imported when it is asked for.
"""
