"""Several ranks: how they meet, what holds between them, what they cost. torchrun starts them, any number."""
