"""Plan, run and analyze reader studies: readers without and with a model's prediction.

`analyze` reads the table of a finished study, `plan` estimates the power of a planned
one, and `kit` writes the page on which readers answer.
"""
