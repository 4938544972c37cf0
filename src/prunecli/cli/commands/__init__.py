"""One verb each. These modules are imported to complete and to show help, so heavy imports stand inside functions."""
