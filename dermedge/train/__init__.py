"""Train models: fine-tune a teacher, distil a student."""
