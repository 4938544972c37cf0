"""What a model of transformers says of itself in its configuration, once parts of it are gone."""
