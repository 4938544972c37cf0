"""`ultralytics:...`: YOLO networks of the package ultralytics, from its names, its YAML files and its checkpoints."""
