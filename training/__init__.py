"""The recipe of the pair that ships: data, training, pruning, distillation."""
