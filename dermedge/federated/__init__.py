"""Train one model at several clients, whose images stay where they are."""
