"""Image quality as the contract says it, pixel by pixel."""

LINES, WHITE, DETAIL = 32, 250, 96


def measure(green: list[list[int]]) -> dict[str, int]:
    """Measure the green values [S][S] of a tensor."""
    size = len(green)
    at = [(2 * i + 1) * size // (2 * LINES) for i in range(LINES)]
    rows = [green[y] for y in at]
    columns = [[row[x] for row in green] for x in at]
    k = max(1, size // DETAIL)
    values = [value for line in rows + columns for value in line]
    return {
        "sharpness": min(_sharpness(lines, k) for lines in (rows, columns)),
        "brightness": sum(values) // len(values),
        "glare": 1000 * sum(value >= WHITE for value in values) // len(values),
    }


def measure_lesion(mask: list[list[bool]]) -> dict[str, int]:
    """Measure a mask [S][S]."""
    size = len(mask)
    last = size - 1
    frame = [(x, y) for y in range(size) for x in range(size)]
    border = [(x, y) for x, y in frame if x in (0, last) or y in (0, last)]
    return {
        name: 1000 * sum(mask[y][x] for x, y in places) // len(places)
        for name, places in (("share", frame), ("border", border))
    }


def _sharpness(lines: list[list[int]], k: int) -> int:
    near = far = 0
    for line in lines:
        for i in range(len(line) - 2 * k):
            near += abs(line[i + k] - line[i])
            far += abs(line[i + 2 * k] - line[i])
    return 1000 * near // far if far else 0
