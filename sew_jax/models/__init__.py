"""wav2vec 2.0, SEW and their stochastic form as Linen modules."""
