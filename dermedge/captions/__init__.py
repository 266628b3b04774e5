"""Train, run and evaluate a model that describes an image in words.

A frozen teacher encodes the image, one linear layer makes visual tokens of its
features, and a language model with LoRA continues them as a caption.

Source: DermINO (arXiv:2508.12190), after Liu et al., "Visual Instruction Tuning",
NeurIPS 2023.
"""
