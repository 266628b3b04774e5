"""Hooks that PyInstaller finds by the entry point `pyinstaller40` of the wheel."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the folder of the hooks. Only PyInstaller imports them, so it is no package."""
    return [str(Path(__file__).parent / "hooks")]
