"""Data sets whose images have the colour that the fake engine predicts from."""

import numpy as np
import pandas as pd
from PIL import Image

# The fake engine predicts by the brightest colour channel: red is nv, green mel, blue
# akiec.
CHANNEL = {"nv": 0, "mel": 1, "akiec": 2}


def make_data(folder, rows):
    """Write images of noise whose mean colour is close to `colour`.

    The other keys of a row are columns of the table.
    """
    (folder / "images").mkdir(parents=True)
    rng, table = np.random.default_rng(0), []
    for number, row in enumerate(rows):
        row = dict(row)
        pixels = rng.integers(60, 160, (40, 48, 3), np.uint8)
        pixels[..., CHANNEL[row.pop("colour")]] += np.uint8(row.pop("by", 30))
        row = {"image_id": f"i{number}", "image": f"images/i{number}.png", "split": "test"} | row
        Image.fromarray(pixels).save(folder / row["image"])
        table.append(row)
    pd.DataFrame(table).to_csv(folder / "metadata.csv", index=False)
    return folder
