"""What the files of a run are called."""

PLAN_NAME, RUN_NAME = "plan.yaml", "run.json"
