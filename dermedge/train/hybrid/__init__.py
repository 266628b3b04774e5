"""Pretrain teachers by self-supervision, labels of several sources, and prototypes."""
