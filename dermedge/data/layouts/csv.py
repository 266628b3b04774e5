"""Any table of images, class folders or Parquet; options of `add_data` map the names."""

from dermedge.data.layouts import Layout, Part

LAYOUT = Layout(
    name="csv",
    title="A table of your own",
    licence="",
    citation="",
    homepage="",
    parts=(Part(table=("metadata.csv", "*.csv")),),
    columns={},
    verified=True,
    evidence="Your own table; nothing is assumed but its header.",
)
