"""Any CSV file of images; options of `add_data` map its columns."""

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
