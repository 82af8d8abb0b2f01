"""The serving engine: model configuration, weights, forward pass and weight precisions."""
