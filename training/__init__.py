"""How the embedded model `mainspring-guide` is made: corpus, model, training, evaluation."""
