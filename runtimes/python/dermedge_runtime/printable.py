"""Show any text and any file name on one line, without control of the terminal."""

import os


def printable(text: object) -> str:
    r"""Return text with invisible characters as escapes, such as `\n` and `\x1b`.

    Line breaks, tabs, control codes, marks that reorder text and bytes that are not
    UTF-8 are escaped as in Python. Letters of all alphabets and emoji stay.

    Args:
        text: Any object; its text is used.

    Example:
        >>> print(printable("first\nsecond \x1b[31mred \udcff"))
        first\nsecond \x1b[31mred \udcff
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def printable_path(path: str | os.PathLike[str]) -> str:
    r"""Return a path as `printable` does; different paths give different texts.

    Where a file name can hold a backslash, it is doubled. Thus an escape is never
    mistaken for a part of the name.

    Args:
        path: The path, which need not exist.

    Example:
        >>> print(printable_path("day/a\nb.jpg"), printable_path("day/lesion.jpg"))
        day/a\nb.jpg day/lesion.jpg
    """
    text = os.fspath(path)
    return printable(text.replace("\\", "\\\\") if os.sep != "\\" else text)
