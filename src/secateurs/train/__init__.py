"""Train what a cut left: fine-tune, distil, recalibrate batch norm, and carry the optimizer over."""
