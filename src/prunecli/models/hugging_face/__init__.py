"""Networks of the library transformers: from its classes, from folders, and from the Hugging Face hub."""
