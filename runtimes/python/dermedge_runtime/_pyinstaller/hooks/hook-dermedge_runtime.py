"""Collect what dermedge_runtime imports by name, which PyInstaller cannot see."""

from importlib.metadata import PackageNotFoundError, entry_points

from PyInstaller.utils.hooks import copy_metadata

from dermedge_runtime.model import GROUP, RUNTIMES

_plugins = entry_points(group=GROUP)
_entries = [*RUNTIMES.values(), *(plugin.value for plugin in _plugins)]
hiddenimports = sorted({entry.partition(":")[0] for entry in _entries})
# The metadata holds the version, and the entry points of installed runtimes.
datas = []
for _name in {"dermedge", *(plugin.dist.name for plugin in _plugins if plugin.dist)}:
    try:
        datas += copy_metadata(_name)
    except PackageNotFoundError:  # The app is built from a folder of sources.
        continue
