"""Recognise files that operating systems and programs leave in folders, by name.

Folders of images and folders of bundles use the same lists.
"""

# Lower case, because Windows and macOS do not distinguish case.
_SYSTEM_NAMES = frozenset(
    {
        # macOS
        "__macosx",
        ".ds_store",
        ".appledouble",
        ".apdisk",
        ".com.apple.timemachine.donotpresent",
        ".documentrevisions-v100",
        ".fseventsd",
        ".localized",
        ".metadata_never_index",
        ".spotlight-v100",
        ".temporaryitems",
        ".trash",
        ".trashes",
        ".volumeicon.icns",
        "icon\r",
        "network trash folder",
        "temporary items",
        # Windows
        "$recycle.bin",
        "desktop.ini",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "recycler",
        "system volume information",
        "thumbs.db",
        # Linux
        ".directory",
        ".thumbnails",
        "lost+found",
        # Network storage by Synology and QNAP
        "#recycle",
        "#snapshot",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        ".@__thumb",
        # Dropbox, Google Drive and Syncthing
        ".dropbox",
        ".dropbox.attr",
        ".dropbox.cache",
        ".stfolder",
        ".stversions",
        ".tmp.driveupload",
        ".tmp.drivedownload",
    }
)
# AppleDouble files, files of NFS and FUSE that are deleted but open, Linux's trash of a
# disk, locks of Microsoft Office and of LibreOffice.
_SYSTEM_PREFIXES = ("._", ".nfs", ".fuse_hidden", ".trash-", "~$", ".~lock.")

# Downloads and copies by browsers, WinSCP, rsync, ownCloud and others; iCloud's
# placeholder `.photo.jpg.icloud` stands for a file that is not on the disk.
_UNFINISHED_SUFFIXES = (
    ".crdownload",
    ".download",
    ".filepart",
    ".icloud",
    ".opdownload",
    ".part",
    ".partial",
    ".tmp",
)


def is_system_file(name: str) -> bool:
    """Return True for a file or folder that holds no content of a user.

    Args:
        name: Name of the file or folder, without its parents.

    Example:
        >>> [is_system_file(name) for name in ("._1.jpg", "Thumbs.db", "1.jpg", ".1.jpg")]
        [True, True, False, False]
    """
    lower = name.lower()
    return lower in _SYSTEM_NAMES or lower.startswith(_SYSTEM_PREFIXES)


def is_hidden(name: str) -> bool:
    """Return True for a file or folder that users do not see, or did not make.

    Args:
        name: Name of the file or folder, without its parents.

    Example:
        >>> is_hidden(".photos"), is_hidden("Thumbs.db"), is_hidden("photos")
        (True, True, False)
    """
    return name.startswith(".") or is_system_file(name)


def is_unfinished(name: str) -> bool:
    """Return True for a download or a copy that has not ended, or a placeholder of one.

    Args:
        name: Name of the file, without its folder.

    Example:
        >>> is_unfinished("1.jpg.part"), is_unfinished(".1.jpg.icloud"), is_unfinished("1.jpg")
        (True, True, False)
    """
    return name.lower().endswith(_UNFINISHED_SUFFIXES)
